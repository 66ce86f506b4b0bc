/** static beside the reference: the same answers to the same questions, for either's main plugins. */
import { assertEquals } from "@std/assert";
import { binDir, call, childPrograms, type Json, nodeTest, runPlugin, tracePlugin } from "./support/mod.ts";

const versions = ["0.1.0", "0.2.0", "0.4.0", "1.1.0"];
const four = { address: "10.9.0.2/24", gateway: "10.9.0.1" };
const six = { address: "FD09::0:2/64" };
const routes = [
  { dst: "10.96.3.4/12", gw: "10.9.0.7", mtu: 1400, advmss: 1300, priority: 5, table: 0, scope: 0 },
  { dst: "::/0" },
  { dst: "10.96.3.4/12" },
];
const dns = { nameservers: ["10.9.0.53"], domain: "a.b", search: ["a.b"], options: ["ndots:5"] };

/** Configurations, with CNI_ARGS: right and wrong. */
const questions: [conf: Json, args?: string][] = [
  [{ ipam: { addresses: [four, six], routes, dns } }],
  [{ ipam: { addresses: [{ address: "::ffff:10.9.0.2/120" }], dns: { options: [] } } }],
  [{ ipam: { addresses: [four] } }, "IP= 10.9.1.2/24 ,fd09::3/64;GATEWAY=10.9.1.1, fd09::1"],
  [{ ipam: { addresses: [{ address: "x" }] }, args: { cni: { ips: ["10.9.2.2/24"] } } }, "IP=10.9.1.2/24"],
  [{ ipam: { addresses: [four] }, runtimeConfig: { ips: ["10.9.3.3/24"] }, args: { cni: { ips: ["10.9.2.2/24"] } } }],
  [{ ipam: { addresses: [four] } }, "IgnoreUnknown=1;K8S_POD_NAME=a"],
  [{ ipam: {} }],
  [{ ipam: { addresses: [{ address: "10.9.0.2" }] } }],
  [{ ipam: { addresses: [{ address: "10.9.0.2/24", gateway: "x" }] } }],
  [{ ipam: { addresses: [four, { address: "10.9.0.3/24" }] } }],
  [{ ipam: { routes: [{ dst: "bad" }] } }],
  [{ ipam: { addresses: [four] } }, "IP=10.9.1.2/24,"],
  [{ ipam: { addresses: [four] } }, "GATEWAY=zz"],
  [{ ipam: { addresses: [four] } }, "K8S_POD_NAME=a"],
  [{ ipam: { addresses: [four] }, runtimeConfig: { ips: ["10.9.3.3"] } }],
  [{ ipam: null }],
  [{}],
];

for (const cniVersion of versions) {
  nodeTest(`static answers at ${cniVersion} what the reference answers`, { needs: ["reference"] }, async ({ node }) => {
    for (const [conf, args = ""] of questions) {
      const answers: Json[] = [];
      for (const by of ["ref", "cnibox"] as const) {
        const request = {
          type: "static",
          by,
          netns: "/run/netns/nowhere",
          containerId: "c1",
          args,
          stdin: { cniVersion, name: "n", ...conf },
        };
        const { code, stdout, json } = await runPlugin(node, { command: "ADD", ...request });
        answers.push(code === 0 ? stdout : { code: json.code, msg: json.msg });
      }
      assertEquals(answers[1], answers[0], `${JSON.stringify(conf)} ${args}`);
    }
  });
}

nodeTest(
  "static starts no program, reads no namespace and keeps nothing",
  { needs: ["tool:strace"] },
  async ({ node }) => {
    const request = {
      type: "static",
      netns: "/run/netns/nowhere",
      containerId: "c1",
      stdin: { cniVersion: "1.1.0", name: "n", ipam: { addresses: [four] } },
    };
    const before = await node.list("/var/lib/cni");
    for (const command of ["ADD", "DEL", "GC", "STATUS"]) {
      const trace = await tracePlugin(node, { command, ...request });
      assertEquals([trace.output.code, childPrograms(trace)], [0, []], command);
    }
    assertEquals(await node.list("/var/lib/cni"), before);
  },
);

for (const [main, ipam] of [["cnibox", "cnibox"], ["cnibox", "ref"], ["ref", "cnibox"]] as const) {
  nodeTest(
    `static of ${ipam} serves the bridge of ${main}`,
    { needs: ["reference", "bridge", "veth"] },
    async ({ node }) => {
      const pod = await node.container();
      const stdin = {
        cniVersion: "1.0.0",
        name: "n",
        type: "bridge",
        bridge: "br9",
        isGateway: true,
        ipam: { type: "static", addresses: [four, six], routes: [{ dst: "0.0.0.0/0" }] },
      };
      const request = { type: "bridge", by: main, netns: pod, path: binDir[ipam], stdin };
      const result = await call(node, { command: "ADD", ...request });
      assertEquals(result.ips.map((ip: Json) => ip.address), ["10.9.0.2/24", "fd09::2/64"]);
      const [link] = await pod.ipJson("addr", "show", "dev", "eth0");
      assertEquals(link.addr_info.filter((one: Json) => one.scope === "global").map((one: Json) => one.local), [
        "10.9.0.2",
        "fd09::2",
      ]);
      await pod.run("ping", "-c", "1", "-W", "2", "10.9.0.1");
      await call(node, { command: "CHECK", ...request, stdin: { ...stdin, prevResult: result } });
      await call(node, { command: "DEL", ...request, stdin: { ...stdin, prevResult: result } });
      assertEquals(await pod.ipJson("link", "show", "type", "veth"), []);
    },
  );
}
