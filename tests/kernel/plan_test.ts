import { assertEquals, assertRejects } from "@std/assert";
import { toCniError } from "../../lib/cni/error.ts";
import { type Applier, apply, settingOf, step, StepError } from "../../lib/kernel/plan.ts";
import type { Command, Output, Run } from "../../lib/kernel/run.ts";
import { settingsIn } from "../fakes/run.ts";

/** Somebody who applies plans: what was run, what would be taken back, and one answer for every process. */
function applier(output: Partial<Output> = {}): { call: Applier; commands: Command[]; undos: (() => unknown)[] } {
  const commands: Command[] = [];
  const undos: (() => unknown)[] = [];
  const run: Run = (command) => {
    commands.push(command);
    return Promise.resolve({ code: 0, signal: null, stdout: "", stderr: "", ...output });
  };
  return { call: { host: run, pod: run, undo: (job) => undos.push(job) }, commands, undos };
}

const undo = step("pod", "ip", "link del dev a");

Deno.test("a setting of a link whose name has an equals sign is that link's", async () => {
  assertEquals(settingOf("net/ipv4/conf/a=b/arp_notify=1"), ["net/ipv4/conf/a=b/arp_notify", "1"]);
  assertEquals(settingOf("net/ipv4/conf/=/arp_notify=a=b"), ["net/ipv4/conf/=/arp_notify", "a=b"]);
  assertEquals(settingOf("net/ipv4/ping_group_range=0 1"), ["net/ipv4/ping_group_range", "0 1"]);
  const { call, commands } = applier();
  await apply(
    [[step("pod", "sysctl", "net/ipv4/conf/a=b/arp_notify=1"), step("pod", "ip", "link set dev a=b up")]],
    call,
  );
  assertEquals(commands.map(({ argv }) => settingsIn(argv)), [["!net/ipv4/conf/a=b/arp_notify=1"]]);
  assertEquals(commands[0]!.argv.slice(-2), ["!net/ipv4/conf/a=b/arp_notify", "1"]);
});

Deno.test("lines that no batch can hold are a process each, settings first, and a failure is that line's", async () => {
  const { call, commands, undos } = applier();
  const steps = [
    step("pod", "ip", "link set dev a#b up", { failing: "failed to set up", undo }),
    step("pod", "sysctl", "net/ipv4/conf/a#b/arp_notify=1"),
    step("pod", "ip", "link show dev c", { read: true }),
  ];
  await apply([steps], call);
  assertEquals(commands.map(({ argv }) => argv[0] === "sh" ? settingsIn(argv) : argv), [
    ["!net/ipv4/conf/a#b/arp_notify=1"],
    ["ip", "-j", "-d", "link", "set", "dev", "a#b", "up"],
    ["ip", "-j", "-d", "-batch", "-"],
  ]);
  assertEquals(undos.length, 1);
  const failing = applier({ code: 2, stderr: 'Cannot find device "a#b"\n' });
  const error = await assertRejects(() => apply([steps.slice(0, 1)], failing.call), StepError);
  assertEquals(toCniError(error).msg, "failed to set up: Link not found");
  assertEquals(toCniError(error).details, 'ip link set dev a#b up: exit status 2: Cannot find device "a#b"');
});

Deno.test("a refusal of the tool's parser, which names no line, is that of the line with the word", async () => {
  const stderr = 'Error: argument "99999999999" is wrong: Invalid "mtu" value\n\n';
  const { call, undos } = applier({ code: 255, stderr });
  const steps = [
    step("pod", "ip", "link add name a type bridge", { failing: "failed to add", undo }),
    step("pod", "ip", "link set dev a mtu 99999999999", { failing: "failed to set mtu", undo }),
    step("pod", "ip", "link set dev a up", { failing: "failed to set up", undo }),
  ];
  const { msg } = toCniError(await assertRejects(() => apply([steps], call)));
  assertEquals(msg, 'failed to set mtu: argument "99999999999" is wrong: Invalid "mtu" value');
  assertEquals(undos.length, 3, "that it was this line is a guess: everything is taken back");
});

Deno.test("no error shows the text of a script", async () => {
  const steps = [
    step("pod", "sysctl", "net/ipv4/conf/a/arp_notify=1", { failing: "failed to set arp_notify" }),
    step("pod", "ip", "link set dev a up"),
  ];
  for (
    const [stderr, details] of [
      ["nsenter: cannot open /run/netns/a: No such file or directory\n", "sh: exit status 1: nsenter: cannot open"],
      [
        "sysctl net/ipv4/conf/a/arp_notify=1:\ntee: x\n",
        "sysctl -w net/ipv4/conf/a/arp_notify=1: exit status 1: sysctl",
      ],
    ] as const
  ) {
    const error = toCniError(await assertRejects(() => apply([steps], applier({ code: 1, stderr }).call)));
    assertEquals(error.details.slice(0, details.length), details);
    assertEquals(/exec|while|shift/.test(error.details), false, error.details);
  }
});
