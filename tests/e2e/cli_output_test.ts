/** What every command prints: JSON for scripts, colours for eyes. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { COMMANDS } from "../../lib/cli/commands.ts";
import { type Json, type Node, nodeTest } from "./support/mod.ts";
import { assertVocabulary } from "./support/documents.ts";
import { cnibox, configure, must } from "./support/operator.ts";

const network = {
  cniVersion: "1.1.0",
  name: "pods",
  plugins: [
    {
      type: "bridge",
      bridge: "br0",
      isGateway: true,
      ipMasq: true,
      hairpinMode: true,
      ipam: { type: "host-local", subnet: "10.22.0.0/24" },
    },
    { type: "portmap", capabilities: { portMappings: true } },
  ],
};

async function start(node: Node): Promise<void> {
  await configure(node, network);
  for (const name of ["one", "two"]) await node.container(name);
  await must(node, ["add", "pods", "one", "--id", "one", "-p", "8080:80"]);
}

/** Arguments of every command that has JSON, in an order in which each has something to do. */
const CALLS: Record<string, string[]> = {
  explain: ["add", "pods", "two"],
  add: ["pods", "two", "--id", "two"],
  check: ["pods", "two"],
  status: ["pods"],
  validate: [],
  show: [],
  networks: [],
  inspect: ["pods"],
  ipam: [],
  "ipam list": [],
  "ipam find": ["one"],
  "ipam check": [],
  "ipam repair": ["--dry-run"],
  "ipam free": ["10.22.0.3", "--force", "--yes"],
  doctor: [],
  gc: ["pods", "--dry-run"],
  restore: ["--all"],
  del: ["pods", "two"],
  "cluster pools": [],
  "cluster blocks": [],
  "cluster find": ["10.22.0.3"],
  "cluster check": [],
  "cluster trim": [],
  "cluster forget": ["nobody"],
  node: ["--once"],
  "node status": [],
  image: ["/run/image.tar"],
  deb: ["/run/cnibox.deb"],
  plugins: [],
  install: ["--bin-dir", "/opt/mine"],
  verify: ["--bin-dir", "/opt/mine"],
  rollback: ["--bin-dir", "/opt/mine"],
  uninstall: ["--bin-dir", "/opt/mine"],
  version: [],
};

/** Further documents of commands that have several. */
const VARIANTS: readonly (readonly string[])[] = [
  ["status"],
  ["status", "old"],
  ["show", "one"],
  ["show", "--network", "pods"],
  ["show", "--problems"],
  ["add", "nowhere", "two"],
];

nodeTest("cnibox prints one JSON document with --json, whatever the command", { needs: ["iptables"] }, async ({
  node,
}) => {
  await start(node);
  // A list of a version that has no STATUS.
  await configure(node, { ...network, name: "old", cniVersion: "1.0.0" });
  for (const args of VARIANTS) {
    const { json, stdout, stderr } = await cnibox(node, [...args, "--json"]);
    assert(json !== undefined, `${args}: ${stdout}${stderr}`);
    assertVocabulary(args.join(" "), json);
  }
  await node.sh("rm /etc/cni/net.d/10-old.conflist");
  // events prints an object a line, for as long as it runs: its test holds them to the same.
  const having = COMMANDS.filter(({ name, flags }) => name !== "events" && flags.some(({ name }) => name === "json"))
    .map(({ name }) => name);
  assertEquals(having.toSorted(), Object.keys(CALLS).sort(), "a command is missing here");
  for (const [name, args] of Object.entries(CALLS)) {
    const { code, json, stdout, stderr } = await cnibox(node, [...name.split(" "), ...args, "--json"]);
    assert(json !== undefined, `${name}: ${stdout}${stderr}`);
    // Nothing was ever replaced, so there is nothing to go back to; doctor may have warnings about the machine; no
    // network here is a cluster's, and no agent is configured.
    const fails = ["rollback", "doctor", "ipam check", "cluster find", "cluster forget", "node", "node status"];
    if (!fails.includes(name)) assertEquals(code, 0, `${name}: ${stdout}${stderr}`);
    assertVocabulary(name, json);
  }
  const failed = await cnibox(node, ["add", "nowhere", "two", "--json"]);
  assertEquals([failed.code, typeof failed.json.msg, typeof failed.json.code], [66, "string", "number"]);
});

nodeTest("cnibox colours what is on a terminal, and nothing else", { needs: ["iptables", "tool:script"] }, async ({
  node,
}) => {
  await start(node);
  const commands = [["show"], ["graph"], ["doctor"], ["ipam"], ["check", "pods", "one"], ["validate"], ["--help"]];
  for (const args of commands) {
    const plain = await cnibox(node, args);
    assert(!`${plain.stdout}${plain.stderr}`.includes("\x1b"), `${args}: ${plain.stdout}`);
    const seen = async (env: Record<string, string>) => {
      const line = ["/opt/cni/bin/cnibox", ...args].join(" ");
      const path = "/usr/sbin:/usr/bin:/sbin:/bin";
      return (await node.exec(["script", "-qec", line, "/dev/null"], { env: { PATH: path, ...env } })).stdout;
    };
    assertStringIncludes(await seen({ TERM: "xterm" }), "\x1b[", `${args}`);
    for (const env of [{ TERM: "dumb" }, { TERM: "xterm", NO_COLOR: "1" }] as Json[]) {
      assert(!(await seen(env)).includes("\x1b"), `${args} with ${JSON.stringify(env)}`);
    }
  }
});
