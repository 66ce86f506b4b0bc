import { assert, assertEquals, assertRejects } from "@std/assert";
import { plugin } from "../../plugins/flannel/mod.ts";
import { CniError } from "../../lib/cni/error.ts";
import type { ContainerCall, DelegateVerb } from "../../lib/cni/plugin.ts";
import type { JsonObject } from "../../lib/cni/types.ts";
import { fakeCall, fakeNetworkCall } from "../fakes/call.ts";

const FILE = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";

interface Place {
  readonly folder: string;
  /** What the delegate was asked, and with what. */
  readonly asked: { type: string; verb: DelegateVerb; text: string }[];
  /** Verbs that fail. */
  readonly failing: Set<string>;
  call(config?: JsonObject, changes?: Partial<ContainerCall>): ReturnType<typeof fakeCall>;
  files(): string[];
}

/** A folder with a subnet file and a plugin folder that holds a bridge, which another program would be. */
async function place(work: (place: Place) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  await Deno.writeTextFile(`${folder}/subnet.env`, FILE);
  await Deno.mkdir(`${folder}/bin`);
  await Deno.writeTextFile(`${folder}/bin/bridge`, "");
  const asked: Place["asked"] = [];
  const failing = new Set<string>();
  try {
    await work({
      folder,
      asked,
      failing,
      call: (config = {}, changes = {}) =>
        fakeCall({ type: "flannel", subnetFile: `${folder}/subnet.env`, dataDir: `${folder}/state`, ...config }, {
          path: [`${folder}/bin`],
          delegate: (type, verb, { stdin } = {}) => {
            asked.push({ type, verb, text: new TextDecoder().decode(stdin) });
            if (failing.has(verb)) return Promise.reject(new CniError(11, `no ${verb}`));
            return Promise.resolve(
              verb === "ADD"
                ? { result: { ips: [{ address: "10.1.17.2/24" }] } }
                : { released: { addresses: ["10.1.17.2"] } },
            );
          },
          ...changes,
        }),
      files: () => {
        try {
          return [...Deno.readDirSync(`${folder}/state`)].map(({ name }) => name).sort();
        } catch {
          return [];
        }
      },
    });
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

async function undone(call: { undos: (() => unknown)[] }): Promise<void> {
  for (const back of call.undos.reverse()) await back();
}

Deno.test("flannel ADD keeps what it hands to the delegate, under the reference's name and its own", () =>
  place(async ({ folder, call, asked, files }) => {
    const result = await plugin.add(call({ dns: { nameservers: ["10.0.0.53"] } }));
    assertEquals(result, { ips: [{ address: "10.1.17.2/24" }], dns: { nameservers: ["10.0.0.53"] } });
    assertEquals(files(), ["ctr1", "ctr1@eth0@net1"]);
    assertEquals(asked.map(({ type, verb }) => [type, verb]), [["bridge", "ADD"]]);
    for (const name of files()) {
      assertEquals(await Deno.readTextFile(`${folder}/state/${name}`), asked[0]?.text);
      assertEquals((await Deno.stat(`${folder}/state/${name}`)).mode! & 0o777, 0o600);
    }
    assertEquals((await Deno.stat(`${folder}/state`)).mode! & 0o777, 0o700);
    assertEquals(JSON.parse(asked[0]!.text).cniVersion, "1.1.0");
  }));

Deno.test("flannel ADD that fails has the delegate clean up, and forgets", () =>
  place(async ({ call, asked, failing, files }) => {
    failing.add("ADD");
    const one = call();
    assertEquals((await assertRejects(() => plugin.add(one), CniError)).code, 11);
    assertEquals(files().length, 2);
    await undone(one);
    assertEquals([files(), asked.map(({ verb }) => verb)], [[], ["ADD", "DEL"]]);
    assertEquals(asked[1]?.text, asked[0]?.text);
  }));

Deno.test("flannel ADD that fails for a living attachment leaves that alone", () =>
  place(async ({ folder, call, asked, failing, files }) => {
    await plugin.add(call({ delegate: { mtu: 9000 } }));
    const before = await Deno.readTextFile(`${folder}/state/ctr1`);
    failing.add("ADD");
    const again = call();
    await assertRejects(() => plugin.add(again), CniError);
    await undone(again);
    assertEquals(asked.map(({ verb }) => verb), ["ADD", "ADD"]);
    assertEquals(await Deno.readTextFile(`${folder}/state/ctr1`), before);
    assertEquals(files(), ["ctr1", "ctr1@eth0@net1"]);
  }));

const missing: readonly [delegate: JsonObject, msg: RegExp][] = [
  [{ type: "nosuch" }, /^failed to delegate add: failed to find plugin "nosuch" in path \[.*\/bin\]$/],
  [{ type: "" }, /^failed to delegate add: no plugin name provided$/],
  [{ type: "../bridge" }, /^failed to delegate add: invalid plugin name: \.\.\/bridge$/],
];

for (const [delegate, msg] of missing) {
  Deno.test(`flannel ADD says that there is no delegate "${delegate.type}", and keeps nothing`, () =>
    place(async ({ call, asked, failing, files }) => {
      failing.add("ADD");
      const one = call({ delegate });
      const error = await assertRejects(() => plugin.add(one), CniError);
      assert(msg.test(error.msg), error.msg);
      await undone(one);
      assertEquals([files(), asked.filter(({ verb }) => verb === "DEL")], [[], []]);
    }));
}

Deno.test("flannel ADD refuses a configuration that is none", () =>
  place(async ({ call, files }) => {
    const error = await assertRejects(() => plugin.add(call({ ipam: "x" })), CniError);
    assertEquals(
      error.msg,
      "failed to load flannel netconf file: failed to load netconf: json: cannot unmarshal string into Go struct field NetConf.ipam of type map[string]interface {}",
    );
    await assertRejects(
      () => plugin.add(call({ subnetFile: "" })),
      CniError,
      "failed to load flannel 'subnet.env' file: open ",
    );
    assertEquals(files(), []);
  }));

Deno.test("flannel DEL hands over what ADD did, whatever changed since, and tells what was released", () =>
  place(async ({ folder, call, asked, files }) => {
    await plugin.add(call());
    await Deno.remove(`${folder}/subnet.env`);
    const released = await plugin.del(call({ delegate: { type: 5 }, ipam: 7 }, { verb: "DEL" }));
    assertEquals(released, { addresses: ["10.1.17.2"] });
    assertEquals([asked[1]?.verb, asked[1]?.text], ["DEL", asked[0]?.text]);
    assertEquals(files(), []);
  }));

Deno.test("flannel DEL that fails keeps the state, so that the next one can clean up", () =>
  place(async ({ call, asked, failing, files }) => {
    await plugin.add(call());
    failing.add("DEL");
    await assertRejects(() => plugin.del(call({}, { verb: "DEL" })), CniError, "no DEL");
    assertEquals(files().length, 2);
    failing.clear();
    await plugin.del(call({}, { verb: "DEL" }));
    assertEquals([files(), asked.length], [[], 3]);
  }));

Deno.test("flannel DEL takes the file that the reference left", () =>
  place(async ({ folder, call, asked, files }) => {
    await Deno.mkdir(`${folder}/state`);
    const text = '{"name":"net1","type":"ipvlan","x":12345678901234567890}';
    await Deno.writeTextFile(`${folder}/state/ctr1`, text);
    await plugin.del(call({}, { verb: "DEL" }));
    assertEquals([asked, files()], [[{ type: "ipvlan", verb: "DEL", text }], []]);
  }));

for (const text of ["", "{", "[]", '{"name":"net1"}']) {
  Deno.test(`flannel DEL makes the configuration anew when the state is ${JSON.stringify(text)}`, () =>
    place(async ({ folder, call, asked, failing, files }) => {
      await Deno.mkdir(`${folder}/state`);
      await Deno.writeTextFile(`${folder}/state/ctr1`, text);
      failing.add("DEL");
      await assertRejects(() => plugin.del(call({}, { verb: "DEL" })), CniError, "no DEL");
      assertEquals(files(), ["ctr1"]);
      failing.clear();
      const one = call({}, { verb: "DEL" });
      await plugin.del(one);
      assertEquals([asked.map(({ type, verb }) => `${type} ${verb}`), files(), one.warnings.length], [
        ["bridge DEL", "bridge DEL"],
        [],
        1,
      ]);
    }));
}

Deno.test("flannel DEL without any state does what it can, and succeeds", () =>
  place(async ({ folder, call, asked, failing }) => {
    await plugin.del(call({}, { verb: "DEL" }));
    assertEquals(asked.map(({ verb }) => verb), ["DEL"]);
    failing.add("DEL");
    await plugin.del(call({}, { verb: "DEL" }));
    await Deno.remove(`${folder}/subnet.env`);
    await plugin.del(call({}, { verb: "DEL" }));
    assertEquals(asked.length, 2);
  }));

Deno.test("flannel keeps two interfaces and two networks of a container apart, in any order of DEL", () =>
  place(async ({ call, asked, files }) => {
    const attachments = [["net1", "eth0"], ["net1", "eth1"], ["net2", "eth2"]] as const;
    const of = ([name, ifName]: readonly [string, string], verb: "ADD" | "DEL") =>
      call({ name, delegate: { bridge: ifName } }, { verb, ifName });
    for (const one of attachments) await plugin.add(of(one, "ADD"));
    assertEquals(files(), ["ctr1", "ctr1@eth0@net1", "ctr1@eth1@net1", "ctr1@eth2@net2"]);
    for (const [at, one] of [attachments[1], attachments[0], attachments[2]].entries()) {
      await plugin.del(of(one, "DEL"));
      const { bridge, name } = JSON.parse(asked[3 + at]!.text);
      assertEquals([name, bridge], [...one]);
    }
    assertEquals(files(), []);
  }));

Deno.test("flannel keeps the reference's file while another interface has the same configuration", () =>
  place(async ({ call, files }) => {
    for (const ifName of ["eth0", "eth1"]) await plugin.add(call({}, { ifName }));
    await plugin.del(call({}, { verb: "DEL", ifName: "eth0" }));
    assertEquals(files(), ["ctr1", "ctr1@eth1@net1"]);
    await plugin.del(call({}, { verb: "DEL", ifName: "eth1" }));
    assertEquals(files(), []);
  }));

Deno.test("flannel CHECK asks the delegate with what it got, the present result and version", () =>
  place(async ({ folder, call, asked }) => {
    await plugin.add(call({ cniVersion: "0.4.0", delegate: { mtu: 9000 } }));
    await Deno.remove(`${folder}/subnet.env`);
    const prevResult = { cniVersion: "1.0.0", ips: [{ address: "10.1.17.2/24" }] };
    await plugin.check(call({ cniVersion: "1.0.0", prevResult }, { verb: "CHECK" }));
    const { verb, text } = asked[1]!;
    assertEquals([verb, JSON.parse(text)], ["CHECK", {
      ...JSON.parse(asked[0]!.text),
      cniVersion: "1.0.0",
      prevResult,
    }]);
  }));

Deno.test("flannel GC asks once for each kind of configuration, then forgets what is not valid", () =>
  place(async ({ folder, call, asked, failing, files }) => {
    for (
      const [containerId, more] of [["a", {}], ["b", { runtimeConfig: { portMappings: [] } }], ["c", {
        delegate: { type: "ptp" },
      }]] as const
    ) {
      await plugin.add(call(more, { containerId }));
    }
    await plugin.add(call({ name: "other" }, { containerId: "d" }));
    await Deno.writeTextFile(`${folder}/state/e`, '{"name":"net1","type":"bridge"}');
    asked.length = 0;
    const valid = [{ containerID: "b", ifname: "eth0" }];
    const network = (more = {}) => fakeNetworkCall({}, { ...call(), ...more, verb: "GC" } as never);
    await plugin.gc(network());
    assertEquals(asked, []);
    failing.add("GC");
    await assertRejects(() => plugin.gc(network({ valid })), CniError, "no GC");
    assertEquals(files().length, 9);
    failing.clear();
    asked.length = 0;
    await plugin.gc(network({ valid }));
    assertEquals(asked.map(({ type }) => type).sort(), ["bridge", "bridge", "ptp"]);
    for (const { text } of asked) {
      assertEquals(JSON.parse(text)["cni.dev/valid-attachments"], valid);
      assertEquals(JSON.parse(text).runtimeConfig, undefined);
    }
    assertEquals(files(), ["b", "b@eth0@net1", "d", "d@eth0@other"]);
  }));

Deno.test("flannel STATUS is 50 without a subnet file or a delegate, else the delegate's", () =>
  place(async ({ folder, call, asked, failing }) => {
    const network = (config = {}) => fakeNetworkCall({}, { ...call(config), verb: "STATUS" } as never);
    await plugin.status(network());
    assertEquals(asked.map(({ verb }) => verb), ["STATUS"]);
    failing.add("STATUS");
    assertEquals((await assertRejects(() => plugin.status(network()), CniError)).code, 11);
    assertEquals(
      (await assertRejects(() => plugin.status(network({ delegate: { type: "nosuch" } })), CniError)).code,
      50,
    );
    await Deno.remove(`${folder}/subnet.env`);
    assertEquals((await assertRejects(() => plugin.status(network()), CniError)).code, 50);
  }));
