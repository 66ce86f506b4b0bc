import { assertEquals } from "@std/assert";
import { oneWord } from "../../lib/kernel/batch.ts";
import { step } from "../../lib/kernel/plan.ts";
import type { Command } from "../../lib/kernel/run.ts";
import { batchWords, blockOfCommand, blocksOf, isQuestion, quotedWord, withInput } from "../../lib/kernel/shell.ts";

Deno.test("a plan becomes plain commands, by namespace, reasons above them, settings first", () => {
  const blocks = blocksOf([
    [
      step("host", "ip", `link set dev v0 alias ${oneWord("a b")} up`, { why: "whose it is" }),
      step("pod", "ip", "link set dev eth0 up"),
      step("pod", "sysctl", "net/ipv4/conf/eth0.1/arp_notify=1", { optional: true, why: "tell" }),
      step("host", "ip", "link show dev v0", { read: true }),
    ],
    [step("host", "ip6", "rule add pref 5 lookup 7"), step("host", "sysctl", "net/ipv4/ip_forward=1")],
    [step("host", "iptables", "*nat\n-N X\nCOMMIT\n"), step("host", "nft", "add table ip END\nEND\n")],
    [step("host", "command", "conntrack -D -p udp", { optional: true })],
  ], "/run/netns/a");
  assertEquals(blocks, [
    { where: "host", lines: ["# whose it is", "ip link set dev v0 alias 'a b' up"] },
    {
      where: { netns: "/run/netns/a" },
      lines: [
        "# tell",
        "echo 1 >/proc/sys/net/ipv4/conf/eth0.1/arp_notify 2>/dev/null || :",
        "ip link set dev eth0 up",
      ],
    },
    {
      where: "host",
      lines: [
        "ip -6 rule add pref 5 lookup 7",
        "echo 1 >/proc/sys/net/ipv4/ip_forward",
        "iptables-restore --noflush -w 20 <<'END'",
        "*nat",
        "-N X",
        "COMMIT",
        "END",
        "nft -f - <<'END_'",
        "add table ip END",
        "END",
        "END_",
        "conntrack -D -p udp 2>/dev/null || :",
      ],
    },
  ]);
});

Deno.test("questions are shown when asked for", () => {
  const plan = [[step("host", "ip", "link show dev v0", { read: true, why: "is it up?" })]];
  assertEquals(blocksOf(plan, ""), []);
  assertEquals(blocksOf(plan, "", { questions: true }), [{
    where: "host",
    lines: ["# is it up?", "ip link show dev v0"],
  }]);
});

Deno.test("words reach the shell as they are", () => {
  assertEquals(batchWords(`link set dev v0 alias "it's $x" 'a "b"'`), [
    "link",
    "set",
    "dev",
    "v0",
    "alias",
    "it's $x",
    'a "b"',
  ]);
  assertEquals(quotedWord("it's $x"), `'it'\\''s $x'`);
  assertEquals(quotedWord(""), "''");
  assertEquals(quotedWord("10.0.0.0/24"), "10.0.0.0/24");
  assertEquals(withInput("cat", "a\nEND\n"), ["cat <<'END_'", "a", "END", "END_"]);
});

Deno.test("commands outside of plans are shown in the namespace that they enter", () => {
  assertEquals(
    blockOfCommand({
      argv: ["nsenter", "--net=/run/netns/a", "--", "ip", "-force", "-batch", "-"],
      input: ["route del 10.0.0.0/8\n"],
    }),
    { where: { netns: "/run/netns/a" }, lines: ["ip route del 10.0.0.0/8 2>/dev/null || :"] },
  );
  assertEquals(blockOfCommand({ argv: ["ip", "link", "del", "dev", "v0"] }), {
    where: "host",
    lines: ["ip link del dev v0"],
  });
});

const QUESTIONS: Command[] = [
  { argv: ["ip", "-j", "-d", "link", "show", "type", "veth"] },
  { argv: ["nsenter", "--net=/x", "--", "ip", "-j", "addr", "show"] },
  {
    argv: ["ip", "-j", "-batch", "-"],
    input: ["link show dev a\n", "route show table all root ::/0\nroute get 10.0.0.1\n"],
  },
  { argv: ["ip", "-V"] },
  { argv: ["nft", "-j", "list", "ruleset"] },
  { argv: ["nft", "--check", "-f", "-"], input: ["add table ip x\n"] },
  { argv: ["iptables-save", "-t", "nat"] },
  { argv: ["iptables", "-w", "20", "-t", "nat", "-S", "X"] },
  { argv: ["iptables", "-w", "20", "-t", "nat", "-C", "X", "-j", "Y"] },
  { argv: ["tc", "-j", "-batch", "-"], input: ["qdisc show dev a\nfilter show dev a parent ffff:\n"] },
  { argv: ["bridge", "-j", "vlan", "show", "dev", "a"] },
  { argv: ["conntrack", "-L"] },
  { argv: ["sysctl", "-n", "net.ipv4.ip_forward"] },
];
const CHANGES: Command[] = [
  { argv: ["ip", "link", "del", "dev", "show"] },
  { argv: ["ip", "-j", "-batch", "-"], input: ["link show dev a\nlink del dev a\n"] },
  { argv: ["ip", "-batch", "/tmp/file"], input: ["x\n"] },
  { argv: ["nsenter", "--net=/x", "--", "sh", "-c", "cat"] },
  { argv: ["nft", "-f", "-"], input: ["list ruleset\n"] },
  { argv: ["iptables-restore", "--noflush"], input: [""] },
  { argv: ["iptables", "-A", "X"] },
  { argv: ["sysctl", "-w", "a=1"] },
  { argv: ["conntrack", "-D"] },
  { argv: ["unheard-of", "list"] },
];

Deno.test("what only looks is told from what changes something; the unknown counts as a change", () => {
  for (const command of QUESTIONS) assertEquals(isQuestion(command), true, command.argv.join(" "));
  for (const command of CHANGES) assertEquals(isQuestion(command), false, command.argv.join(" "));
});

Deno.test("names are literal words to the shell, whatever they are made of", async () => {
  const signs = [...`!"#$&'()*+,;<=>?@[\\]^\`{|}~`];
  for (const name of [...signs.map((sign) => `a${sign}b`), ...signs, "-x", "$(id)", "a b"]) {
    const [block] = blocksOf([[step("host", "ip", `link set dev ${oneWord(name)} up`, { why: `about ${name}` })]], "");
    const script = `ip() { printf '%s|' "$@"; }\n${block!.lines.join("\n")}`;
    const { stdout } = await new Deno.Command("/bin/sh", { args: ["-euc", script] }).output();
    assertEquals(new TextDecoder().decode(stdout), `link|set|dev|${name}|up|`);
  }
});
