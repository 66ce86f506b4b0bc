import { assertEquals, assertRejects } from "@std/assert";
import {
  busAbsence,
  busAddress,
  FirewalldError,
  firewalldRunning,
  isTrue,
  zoneSource,
} from "../../lib/kernel/firewalld.ts";
import type { Output, Run } from "../../lib/kernel/run.ts";
import { RULE_TOOLS, withTools } from "../fakes/tools.ts";

function answering(output: Partial<Output>): Run & { lines: string[] } {
  const lines: string[] = [];
  const run: Run = ({ argv }) => {
    lines.push(argv.join(" "));
    return Promise.resolve({ code: 0, signal: null, stdout: "", stderr: "", ...output });
  };
  return Object.assign(run, { lines });
}

const BUS = "unix:path=/proc/self/stat";
const source = { method: "addSource", zone: "trusted", source: "10.22.0.5/32" } as const;

Deno.test("the bus is the environment's, else the system's", () => {
  assertEquals(busAddress({}), "unix:path=/var/run/dbus/system_bus_socket");
  assertEquals(busAddress({ DBUS_SYSTEM_BUS_ADDRESS: "unix:path=/x" }), "unix:path=/x");
  assertEquals(
    busAbsence("unix:path=/proc/self/none/bus,guid=1"),
    "dial unix /proc/self/none/bus: connect: no such file or directory",
  );
  assertEquals(busAbsence("tcp:host=localhost"), undefined);
});

Deno.test("firewalld is called by busctl, and its refusals are its own words", async () => {
  await withTools(RULE_TOOLS, async () => {
    const run = answering({ stdout: 's "trusted"\n' });
    await zoneSource(run, BUS, source);
    assertEquals(run.lines, [
      `busctl --address=${BUS} --timeout=20 call org.fedoraproject.FirewallD1 /org/fedoraproject/FirewallD1 org.fedoraproject.FirewallD1.zone addSource ss trusted 10.22.0.5/32`,
    ]);
    const refused = answering({
      code: 1,
      stderr: "Call failed: ZONE_ALREADY_SET: '10.22.0.5/32' already bound to 'trusted'\n",
    });
    await assertRejects(() => zoneSource(refused, BUS, source), FirewalldError, "ZONE_ALREADY_SET: '10.22.0.5/32'");
    await assertRejects(
      () => zoneSource(run, "unix:path=/proc/self/none", source),
      FirewalldError,
      "dial unix /proc/self/none",
    );
    assertEquals(await firewalldRunning(answering({ stdout: 's ":1.5"\n' }), BUS), true);
    assertEquals(await firewalldRunning(refused, BUS), false);
    assertEquals(await firewalldRunning(run, "unix:path=/proc/self/none"), false);
  });
});

Deno.test("answers of busctl and dbus-send are read", () => {
  for (
    const [answer, is] of [["b true\n", true], ["b false\n", false], ["   boolean true\n", true], [
      "   boolean false\n",
      false,
    ], ["", false]] as const
  ) {
    assertEquals(isTrue(answer), is, answer);
  }
});
