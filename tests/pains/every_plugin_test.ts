/** Pains that every plugin can give: silence, debris, wrong codes, waiting, tools that are missing. */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { Attachment, binDir, type Json, type Need, tracePlugin } from "../e2e/support/mod.ts";
import { bridgeNet, leases, painTest, play, rulesWith, said } from "./support.ts";

const bridge: Need[] = ["bridge", "veth", "iptables"];

painTest(
  "C732, C670: whatever is wrong with a call, its answer is one JSON error",
  bridge,
  async ({ node, by }) => {
    const netns = await node.container("a");
    const ask = async (more: Json) => {
      const output = await play({ node, by }, {
        type: "bridge",
        command: "ADD",
        netns,
        stdin: bridgeNet(),
        ...more,
      });
      return output.code === 1 && typeof output.json?.code === "number" && typeof output.json?.msg === "string"
        ? "JSON"
        : `exit ${output.code}, ${JSON.stringify(output.stdout.slice(0, 60))}`;
    };
    // The runtime loses patience while the IPAM plugin is at work.
    await node.write("/run/slow/slow", "#!/bin/sh\n: >/run/started; sleep 1; exit 1\n", 0o755);
    const script = `exec 3<&0; "$@" <&3 3<&- & until [ -e /run/started ]; do sleep 0.05; done; kill -TERM $!; wait $!`;
    const [terminated, ...rest] = await Promise.all([
      ask({
        path: `${binDir[by]}:/run/slow`,
        wrap: ["sh", "-c", script, "sh"],
        stdin: bridgeNet({ ipam: { type: "slow" } }),
        ifName: "eth9",
      }),
      ask({ stdin: '{"cniVersion": "1.0.0", "na' }),
      ask({ stdin: "" }),
      ask({ stdin: "[]" }),
      ask({ containerId: null }),
      ask({ stdin: bridgeNet({ mtu: "a lot" }) }),
    ]);
    return { terminated, others: rest.join(" ") };
  },
  { terminated: "JSON", others: "JSON JSON JSON JSON JSON" },
);

painTest(
  "P29: a failed ADD leaves nothing, and the second try tells the same cause",
  bridge,
  async ({ node, by }) => {
    const netns = await node.container("a");
    const stdin = bridgeNet({
      ipam: {
        type: "host-local",
        ranges: [[{ subnet: "10.22.0.0/24" }]],
        routes: [{ dst: "10.99.0.0/16", gw: "172.31.0.1" }],
      },
    });
    const add = () => play({ node, by }, { type: "bridge", command: "ADD", netns, stdin });
    const first = said(await add()), second = said(await add());
    return { same: first === second, second, leases: await leases(node), links: (await netns.ipJson("link")).length };
  },
  ({ second, ...rest }) => {
    assertEquals(rest, { same: true, leases: [], links: 1 });
    assertMatch(second, /^failed to add route .*172\.31\.0\.1/);
  },
);

painTest(
  "k8s 57465, P810: DEL succeeds with whatever is gone, any number of times, and leaves neither address nor rule",
  bridge,
  async ({ node, by }) => {
    const seen: Record<string, string> = {};
    const del = async (what: string, more: Json = {}) => {
      const output = await play({ node, by }, { type: "bridge", command: "DEL", netns: null, stdin: conf, ...more });
      const left = [...await leases(node), `${await rulesWith(node, "CNI-")} rules`].join(", ");
      seen[what] = `${said(output)}; left: ${left}`;
    };
    const conf = bridgeNet();
    const add = async (name: string) => {
      const pod = await node.container(name);
      const result = await new Attachment(node, conf, pod).add(by);
      return { pod, result };
    };
    await add("a");
    await del("no namespace, no result", { containerId: "a" });
    const { result } = await add("b");
    await del("namespace gone", {
      containerId: "b",
      netns: "/run/netns/gone",
      stdin: { ...conf, prevResult: result },
    });
    await del("again", { containerId: "b", netns: "/run/netns/gone" });
    const c = await add("c");
    await node.sh("iptables -t nat -F; iptables -t nat -X");
    await c.pod.ip("link del eth0");
    await del("rules and link gone", { containerId: "c", netns: c.pod });
    return seen;
  },
  (seen) => {
    for (const [what, left] of Object.entries(seen)) assertEquals(left, "done; left: 0 rules", what);
  },
);

painTest(
  "nerdctl 2933: an address that the container has already is refused with holder, age and way out",
  bridge,
  async ({ node, by }) => {
    const netns = await node.container("a");
    const request = { type: "host-local", netns, stdin: bridgeNet() };
    await play({ node, by }, { ...request, command: "ADD" });
    const { json } = await play({ node, by }, { ...request, command: "ADD" });
    return `${json.msg}: ${json.details ?? "no details"}`;
  },
  (seen) => {
    assertStringIncludes(seen, "duplicate allocation is not allowed");
    for (const part of [/container a\b/, /in no network namespace|in use in/, /cnibox ipam/]) assertMatch(seen, part);
  },
);

painTest(
  "P714: a namespace path that leads to the host's own is refused; lo and eth0 stay",
  bridge,
  async ({ node, by }) => {
    await node.ip("link add eth0 type veth peer name eth0p", "link set eth0 up", "link set eth0p up");
    const netns = "/proc/self/ns/net";
    for (const [type, ifName] of [["loopback", "lo"], ["bridge", "eth0"]] as const) {
      for (const command of ["ADD", "DEL"]) {
        await play({ node, by }, { type, command, netns, ifName, containerId: "a", stdin: bridgeNet({ type }) });
      }
    }
    const links = await node.ipJson("link");
    return links.filter(({ flags }: Json) => flags.includes("UP")).map(({ ifname }: Json) => ifname)
      .filter((name) => name === "lo" || name === "eth0").sort().join(" ");
  },
  "eth0 lo",
);

painTest<Record<string, number>>(
  "P510, C605: ADD and DEL start few processes",
  [...bridge, "ip6tables", "tool:strace"],
  async ({ node, by }) => {
    const stdin = bridgeNet({
      ipam: { type: "host-local", ranges: [[{ subnet: "10.22.0.0/24" }], [{ subnet: "fd00:22::/64" }]] },
    });
    await new Attachment(node, stdin, await node.container("w")).add(by);
    const request = { type: "bridge", netns: await node.container("a"), by };
    const add = await tracePlugin(node, { ...request, command: "ADD", stdin });
    assertEquals(add.output.code, 0, add.output.stdout);
    const del = await tracePlugin(node, {
      ...request,
      command: "DEL",
      stdin: { ...stdin, prevResult: add.output.json },
    });
    assertEquals(del.output.code, 0, del.output.stdout);
    return { ADD: add.children, DEL: del.children };
  },
  ({ ADD, DEL }) => assert(ADD! <= 4 && DEL! <= 4, `ADD ${ADD}, DEL ${DEL}`),
);

painTest(
  "P519: tools are found although the runtime's PATH leads nowhere",
  bridge,
  async ({ node, by }) => {
    const netns = await node.container("a");
    return said(
      await play({ node, by }, {
        type: "bridge",
        command: "ADD",
        netns,
        stdin: bridgeNet(),
        env: { PATH: "/run/nowhere" },
      }),
    );
  },
  "done",
);

painTest(
  "P461, P762: without iptables, nft alone is enough for masquerading",
  [...bridge, "nf_tables"],
  async ({ node, by }) => {
    for (const tool of ["iptables", "ip6tables"]) {
      await node.sh('mount --bind /dev/null "$(readlink -f "$(command -v "$1")")" || true', tool);
    }
    const netns = await node.container("a");
    const output = await play({ node, by }, { type: "bridge", command: "ADD", netns, stdin: bridgeNet() });
    return `${said(output)}; masquerade: ${(await node.run("nft", "list", "ruleset")).includes("masquerade")}`;
  },
  "done; masquerade: true",
);

painTest(
  "containerd 6876: a version that is not supported is named with those that are",
  [],
  async ({ node, by }) => {
    const netns = await node.container("a");
    const stdin = { cniVersion: "9.9.9", name: "lo", type: "loopback" };
    const { json } = await play({ node, by }, { type: "loopback", command: "ADD", ifName: "lo", netns, stdin });
    return { code: json.code, msg: json.msg, details: json.details ?? "" };
  },
  ({ code, msg, details }) => {
    assertEquals(code, 1);
    assertStringIncludes(msg, "incompatible CNI versions");
    for (const part of ["9.9.9", "0.1.0", "1.1.0"]) assertStringIncludes(`${msg} ${details}`, part);
  },
);

painTest(
  "STATUS refuses when no address is left, and where no lease can be written",
  [],
  async ({ node, by }) => {
    const dataDir = "/run/data";
    const stdin = bridgeNet({ ipam: { type: "host-local", dataDir, ranges: [[{ subnet: "10.22.0.0/30" }]] } });
    await play({ node, by }, { type: "host-local", command: "ADD", netns: await node.container("a"), stdin });
    const full = await play({ node, by }, { type: "host-local", command: "STATUS", stdin });
    await node.sh('mount -t tmpfs -o ro data "$1"', dataDir);
    const unwritable = await play({ node, by }, { type: "host-local", command: "STATUS", stdin });
    return { full: full.json?.code ?? 0, words: full.json?.msg ?? "", unwritable: unwritable.json?.code ?? 0 };
  },
  ({ full, words, unwritable }) => {
    assertMatch(words, /no IP addresses available in range set: .* all 1 are taken/);
    assertEquals([full, unwritable], [50, 50]);
  },
);

painTest(
  "GC with an empty list removes veth, rules and address of a container that is lost",
  bridge,
  async ({ node, by }) => {
    await new Attachment(node, bridgeNet(), await node.container("a")).add(by);
    const stdin = bridgeNet({ "cni.dev/valid-attachments": [] });
    const output = await play({ node, by }, { type: "bridge", command: "GC", stdin });
    return {
      said: said(output),
      leases: await leases(node),
      rules: await rulesWith(node, "CNI-"),
      veths: (await node.ipJson("link", "show", "type", "veth")).length,
    };
  },
  { said: "done", leases: [], rules: 0, veths: 0 },
);

painTest(
  "CVE-2021-20206: an IPAM type with a path in it runs nothing",
  bridge,
  async ({ node, by }) => {
    await node.write("/run/evil", "#!/bin/sh\necho ran >/run/ran\n", 0o755);
    const netns = await node.container("a");
    const stdin = bridgeNet({ ipam: { type: "../../../run/evil" } });
    const output = await play({ node, by }, { type: "bridge", command: "ADD", netns, stdin });
    return { failed: output.code === 1, ran: await node.read("/run/ran") !== undefined };
  },
  { failed: true, ran: false },
);
