/**
 * What all plugins that give a container a link do alike: GC and STATUS towards the IPAM plugin, CHECK without a
 * result.
 */
import { assertEquals, assertRejects } from "@std/assert";
import { CniError, code } from "../../lib/cni/error.ts";
import type { Call, Plugin } from "../../lib/cni/plugin.ts";
import type { JsonObject } from "../../lib/cni/types.ts";
import { plugin as bridge } from "../../plugins/bridge/mod.ts";
import { plugin as dummy } from "../../plugins/dummy.ts";
import { plugin as hostDevice } from "../../plugins/host-device/mod.ts";
import { plugin as ipvlan } from "../../plugins/ipvlan.ts";
import { plugin as macvlan } from "../../plugins/macvlan.ts";
import { plugin as ptp } from "../../plugins/ptp/mod.ts";
import { plugin as tap } from "../../plugins/tap.ts";
import { plugin as vlan } from "../../plugins/vlan.ts";
import { fakeCall, fakeNetworkCall } from "../fakes/call.ts";
import { noted } from "../fakes/kernel.ts";

const ipam = { type: "other" };
/** Each with a configuration that is enough for it. */
const PLUGINS: readonly (readonly [Plugin, JsonObject])[] = [
  [bridge, {}],
  [dummy, {}],
  [hostDevice, { device: "eth7" }],
  [ipvlan, { linkInContainer: true }],
  [macvlan, { linkInContainer: true }],
  [ptp, {}],
  [tap, {}],
  [vlan, { master: "eth7", linkInContainer: true }],
];

/** An IPAM plugin that answers every question with this error, or is content. */
const asked = (log: string[], error?: CniError): Call["delegate"] => (type, verb) => {
  log.push(`${type} ${verb}`);
  return error ? Promise.reject(error) : Promise.resolve({});
};

for (const [plugin, more] of PLUGINS) {
  const { name } = plugin;
  const config = { ...more, ipam };

  Deno.test(`${name} GC has the IPAM plugin collect, and takes one that cannot for content`, async () => {
    for (
      const [error, warned] of [
        [undefined, []],
        [new CniError(code.environment, "unknown CNI_COMMAND: GC"), [
          "other collects nothing: unknown CNI_COMMAND: GC",
        ]],
        [new CniError(code.incompatibleVersion, "too old"), ["other collects nothing: too old"]],
      ] as const
    ) {
      const log: string[] = [];
      const call = fakeNetworkCall(config, { delegate: asked(log, error) });
      await plugin.gc(call);
      assertEquals([log, call.warnings], [["other GC"], [...warned]]);
    }
    const call = fakeNetworkCall(config, { delegate: asked([], new CniError(11, "busy")) });
    assertEquals((await assertRejects(() => plugin.gc(call), CniError)).code, 11);
  });

  Deno.test(`${name} STATUS is what the IPAM plugin says where nothing else is missing`, async () => {
    const log: string[] = [];
    await plugin.status(fakeNetworkCall(config, { verb: "STATUS", delegate: asked(log) }));
    assertEquals(log, ["other STATUS"]);
    const call = fakeNetworkCall(config, { verb: "STATUS", delegate: asked([], new CniError(50, "full")) });
    assertEquals((await assertRejects(() => plugin.status(call), CniError)).msg, "full");
  });

  Deno.test(`${name} CHECK needs the result of ADD`, async () => {
    const call = fakeCall(config, { verb: "CHECK", delegate: asked([]) });
    assertEquals(
      (await assertRejects(() => plugin.check(call), CniError)).msg.replace(/^.*equired/, "required"),
      "required prevResult missing",
    );
  });

  Deno.test(`${name} DEL releases the addresses though its links cannot be removed`, async () => {
    const fails = { line: /link del|link show/, stderr: "RTNETLINK answers: Operation not permitted" };
    const { call, log } = noted({ ...config, ipam: { type: "host-local" } }, { fails, changes: { verb: "DEL" } });
    await plugin.del(call).catch(() => {});
    assertEquals(log.at(-1), "host-local DEL");
  });
}
