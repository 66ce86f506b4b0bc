/**
 * Pains of portmap: rules that were flushed, ports asked for twice, services of the host within reach, chains that are
 * missing.
 */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { type Json, type Namespace, type Need, request, serve, tracePlugin } from "../e2e/support/mod.ts";
import { painTest, play, rulesWith, said, type Stage } from "./support.ts";

const needs: Need[] = ["bridge", "veth", "iptables", "ip6tables"];

/** A container on a bridge made by hand, with 10.22.0.HOST. */
async function pod({ node }: Stage, host: number): Promise<{ space: Namespace; prevResult: Json }> {
  if (host === 5) {
    await node.ip("link add cni0 address 02:00:00:00:00:22 type bridge", "addr add 10.22.0.1/24 dev cni0");
    await node.ip("link set cni0 up");
    await node.sysctl("ipv4/ip_forward", 1);
  }
  const space = await node.container(`c${host}`);
  await node.ip(`link add v${host} type veth peer name eth0 netns ${space.netns}`, `link set v${host} master cni0 up`);
  await space.ip(
    "link set lo up",
    `addr add 10.22.0.${host}/24 dev eth0`,
    "link set eth0 up",
    "route add default via 10.22.0.1",
  );
  const prevResult = {
    cniVersion: "1.0.0",
    interfaces: [{ name: "cni0" }, { name: `v${host}` }, { name: "eth0", sandbox: space.netns }],
    ips: [{ address: `10.22.0.${host}/24`, interface: 2 }],
  };
  return { space, prevResult };
}

const conf = (prevResult: Json, portMappings: Json, more: Json = {}): Json => ({
  cniVersion: "1.0.0",
  name: "net1",
  type: "portmap",
  backend: "iptables",
  runtimeConfig: { portMappings },
  prevResult,
  ...more,
});
const tcp = (hostPort: number, containerPort = 80) => ({ hostPort, containerPort, protocol: "tcp" });

painTest(
  "P512, podman 5431: rules that somebody flushed are missed by CHECK, and DEL works without them",
  needs,
  async (stage) => {
    const { space, prevResult } = await pod(stage, 5);
    const ask = async (command: string) => {
      const request = { type: "portmap", command, netns: space, stdin: conf(prevResult, [tcp(8080)]) };
      return said(await play(stage, request));
    };
    const seen: Record<string, string> = { ADD: await ask("ADD"), CHECK: await ask("CHECK") };
    await stage.node.sh("iptables -t nat -F; iptables -t nat -X; iptables -F; iptables -X");
    return { ...seen, flushed: await ask("CHECK"), DEL: await ask("DEL"), again: await ask("DEL") };
  },
  ({ flushed, ...rest }: Record<string, string>) => {
    assertEquals(rest, { ADD: "done", CHECK: "done", DEL: "done", again: "done" });
    assertMatch(flushed!, /CNI-/);
  },
);

painTest(
  "P729, k8s 90259: a container does not reach services that listen on the host's 127.0.0.1",
  [...needs, "tool:socat"],
  async (stage) => {
    const { node } = stage;
    const { space, prevResult } = await pod(stage, 5);
    const secret = await serve(node, 6666, { name: "secret", address: "127.0.0.1" });
    await space.sysctl("ipv4/conf/all/route_localnet", 1);
    await space.sh(
      "ip addr flush dev lo; ip route flush table local 127.0.0.0/8 || true; ip route add 127.0.0.0/8 via 10.22.0.1 src 10.22.0.5",
    );
    await play(stage, { type: "portmap", command: "ADD", netns: space, stdin: conf(prevResult, [tcp(8080)]) });
    const stolen = await request(space, "127.0.0.1", 6666, { bind: "10.22.0.5" });
    await secret.close();
    const server = await serve(space, 80, { name: "pod" });
    const published = await request(node, "127.0.0.1", 8080);
    await server.close();
    return { stolen: stolen?.name ?? "", published: published?.name ?? "" };
  },
  { stolen: "", published: "pod" },
);

painTest(
  "C351, moby 13024: a host port that a living container has is refused to the next",
  needs,
  async (stage) => {
    const [one, two] = [await pod(stage, 5), await pod(stage, 6)];
    const add = async ({ space, prevResult }: typeof one) =>
      said(await play(stage, { type: "portmap", command: "ADD", netns: space, stdin: conf(prevResult, [tcp(8080)]) }));
    return { first: await add(one), second: await add(two) };
  },
  ({ first, second }) => {
    assertEquals(first, "done");
    assertStringIncludes(second, "8080/tcp is already published by container c5");
  },
);

painTest(
  "C351: a host port that a program of the host has is told",
  [...needs, "tool:socat"],
  async (stage) => {
    const { space, prevResult } = await pod(stage, 5);
    const server = await serve(stage.node, 8080, { name: "host" });
    const request = { type: "portmap", command: "ADD", netns: space, stdin: conf(prevResult, [tcp(8080)]) };
    const output = await play(stage, request);
    await server.close();
    return `${said(output)} ${output.stderr.trim()}`;
  },
  (seen) => assertMatch(seen, /^done .*8080\/tcp is in use by socat/s),
);

painTest(
  "P464, P509: without mappings nothing is started, and no firewall is asked for",
  [...needs, "tool:strace"],
  async (stage) => {
    const { space, prevResult } = await pod(stage, 5);
    const children: Record<string, number> = {};
    for (const command of ["ADD", "DEL"]) {
      const stdin = conf(prevResult, []);
      const trace = await tracePlugin(stage.node, { type: "portmap", command, netns: space, stdin, by: stage.by });
      assertEquals(trace.output.code, 0, trace.output.stdout);
      children[command] = trace.execs.length - 1;
    }
    return children;
  },
  { ADD: 0, DEL: 0 },
);

painTest(
  "P770, cri-o 6772: a mark chain that is missing is told with the option that names it, and leaves no rules",
  needs,
  async (stage) => {
    const { space, prevResult } = await pod(stage, 5);
    const stdin = conf(prevResult, [tcp(8080)], { externalSetMarkChain: "KUBE-MARK-MASQ" });
    const { json } = await play(stage, { type: "portmap", command: "ADD", netns: space, stdin });
    return { text: `${json?.msg}: ${json?.details ?? ""}`, rules: await rulesWith(stage.node, "10.22.0.5") };
  },
  ({ text, rules }) => {
    for (const part of ["KUBE-MARK-MASQ", "externalSetMarkChain"]) assertStringIncludes(text, part);
    assertEquals(rules, 0);
  },
);

painTest(
  "P1209, P222: traffic to another host's port of the same number passes by the mapping",
  [...needs, "tool:socat", "nf_tables"],
  async (stage) => {
    const { node } = stage;
    const outside = await node.outside();
    const { space, prevResult } = await pod(stage, 5);
    const server = await serve(outside, 8080, { name: "outside" });
    const own = await serve(space, 80, { name: "pod" });
    const seen: Record<string, string> = {};
    for (const backend of ["iptables", "nftables"]) {
      const stdin = conf(prevResult, [tcp(8080)], { backend });
      const output = await play(stage, { type: "portmap", command: "ADD", netns: space, stdin });
      assert(output.code === 0, output.stdout);
      seen[backend] = (await request(node, outside.ipv4, 8080))?.name ?? "no answer";
      await play(stage, { type: "portmap", command: "DEL", netns: space, stdin });
    }
    await Promise.all([server.close(), own.close()]);
    return seen;
  },
  { iptables: "outside", nftables: "outside" },
);
