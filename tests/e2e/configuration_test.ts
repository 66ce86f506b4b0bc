/**
 * Configurations that JSON readers disagree about, beside the reference: keys written twice, in several cases, odd
 * numbers.
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { call, type Json, nodeTest, runPlugin } from "./support/mod.ts";

const head = '"cniVersion": "1.1.0", "name": "n"';
const two = '"addresses": [{"address": "10.1.1.1/24", "gateway": "10.1.1.9"}, {"address": "10.1.1.2/24"}]';
const one = '"addresses": [{"address": "10.1.1.3/24"}]';
const previous = '"prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "/x"}]}';
const range = '"type": "host-local", "dataDir": "/run/leases", "ranges": [[{"subnet": "10.1.0.0/24"}]]';

/** A plugin and what it reads, as text: it cannot be written as an object. */
const questions: [type: string, conf: string][] = [
  ...[
    `"ipam": {${two}, ${one}}`,
    `"ipam": {${one}, ${two}}`,
    `"ipam": {${two}, "Addresses": [{"gateway": "10.1.1.8"}]}`,
    `"ipam": {${two}}, "ipam": {}`,
    `"ipam": {${two}}, "IPAM": {}`,
    `"ipam": {${two}}, "ipam": {"dns": {"domain": "x"}}`,
    `"ipam": {${two}, "addresses": null}`,
    `"ipam": {${two}, "dns": {"domain": "x", "nameservers": ["a"]}, "dns": {"domain": "y"}}`,
    `"ipam": {${two}, "routes": [{"dst": "10.0.0.0/8", "gw": "1.1.1.1"}], "routes": [{"dst": "11.0.0.0/8"}]}`,
    `"name": "m", "name": "!", "ipam": {${two}}`,
    `"cniVersion": "0.4.0", "ipam": {${two}}`,
    `"ipam": {${two}}, "runtimeConfig": {"ips": ["10.9.9.9/24"]}, "runtimeConfig": {}`,
    `"ipam": {${two}}, "runtimeConfig": {"ips": ["10.9.9.9/24"]}, "runtimeConfig": null`,
    `"ipam": {${two}}, "args": {"cni": {"ips": ["10.9.9.9/24"]}}, "args": {"cni": {}}`,
    ...[
      '{"address": "10.1.1.1/24", "Address": "10.2.2.2/24"}',
      '{"Address": "10.2.2.2/24", "address": "10.1.1.1/24"}',
      '{"Address": "10.2.2.2/24"}',
      '{"Address": null, "address": "10.1.1.1/24"}',
      '{"Address": {}, "address": "10.1.1.1/24"}',
      '{"ADDRESS": "10.2.2.2/24"}',
      '{"address": "10.1.1.1/24", "ADDRESS": "10.2.2.2/24"}',
      '{"ADDRESS": "10.2.2.2/24", "address": "10.1.1.1/24"}',
      '{"addre\u017fs": "10.2.2.2/24"}',
      '{"address": "10.1.1.1/24", "address": "10.3.3.3/24"}',
      '{"address": "10.1.1.1/24", "address": null}',
      '{"address": "10.1.1.1/24", "gateway": "10.1.1.9", "Gateway": "10.1.1.8"}',
      '{"address": "10.1.1.1/24", "unknown": 1e4}',
    ].map((address) => `"ipam": {"addresses": [${address}]}`),
  ].map((conf): [string, string] => ["static", conf]),
  ["host-local", `"ipam": {${range}}, "ipam": {"routes": [{"dst": "0.0.0.0/0"}]}`],
  ["host-local", `"ipam": {${range}, "ranges": [[{"gateway": "10.1.0.9"}]]}`],
  ["tuning", `"sysctl": {"net.core.somaxconn": "1", "net.core.somaxconn": "2"}, ${previous}`],
  ...["1500.0", "15e2", "15E2", "1e0", "1e400", "1.5", "99999999999999999999"].flatMap((number): [string, string][] => [
    ["tuning", `"mtu": ${number}, ${previous}`],
    ["vlan", `"master": "nobody", "vlanId": ${number}`],
    ["macvlan", `"master": "nobody", "mtu": ${number}`],
    ["bridge", `"vlan": ${number}, "ipam": {}`],
    ["vrf", `"vrfname": "v", "table": ${number}, ${previous}`],
    ["sbr", `"table": ${number}, ${previous}`],
    ["portmap", `"markMasqBit": ${number}, ${previous}`],
    ["portmap", `"runtimeConfig": {"portMappings": [{"hostPort": ${number}, "containerPort": 1}]}, ${previous}`],
    ["bandwidth", `"ingressRate": ${number}, "ingressBurst": 1000, ${previous}`],
    ["static", `"ipam": {"routes": [{"dst": "10.0.0.0/8", "mtu": ${number}}]}`],
  ]),
];

/** Go's complaint names the struct that a field is in and how wide an integer is, which is nobody's business. */
const plain = (msg: string) =>
  msg.replace(/Go struct field \S*?(\w+) of type (u?int)?(\d+)?/, "Go struct field $1 of type $2").replace(
    "type uint",
    "type int",
  );

nodeTest(
  "configurations that can be read in two ways are read as the reference reads them",
  { needs: ["reference"] },
  async ({ node }) => {
    for (const [type, conf] of questions) {
      const answers: Json[] = [];
      for (const by of ["ref", "cnibox"] as const) {
        await node.exec(["rm", "-rf", "/run/leases"]);
        const request = { type, by, netns: "/run/netns/nowhere", containerId: "c1", stdin: `{${head}, ${conf}}` };
        const { code, stdout, json } = await runPlugin(node, { command: "ADD", ...request });
        answers.push(code === 0 ? stdout : plain(json.msg));
      }
      assertEquals(answers[1], answers[0], `${type} ${conf}`);
    }
  },
);

nodeTest(
  "a second ipam object does not leave a container without its address",
  { needs: ["veth", "reference"] },
  async ({ node }) => {
    const stdin = `{${head}, "type": "bridge", "bridge": "br9", "ipam": {${range}}, "ipam": {}}`;
    const addresses: Json[] = [];
    for (const by of ["ref", "cnibox"] as const) {
      const pod = await node.container();
      const request = { type: "bridge", by, netns: pod, stdin };
      const output = await runPlugin(node, { command: "ADD", ...request });
      assertEquals(output.code, 0, output.stdout);
      addresses.push(output.json.ips.length);
      if (by === "cnibox") assertStringIncludes(output.stderr, '"ipam" is written twice in the configuration');
      await call(node, { command: "DEL", ...request });
      assertEquals((await node.list("/run/leases/n")).filter((name) => name.startsWith("10.")), []);
    }
    assertEquals(addresses, [1, 1]);
  },
);

nodeTest(
  "a previous result may have its numbers written as floats",
  { needs: ["veth", "reference"] },
  async ({ node }) => {
    const pod = await node.container();
    await pod.ip("link add eth0 type veth peer name other");
    const result =
      `"prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "mtu": 15e2, "sandbox": "${pod.netns}"}],
    "ips": [{"address": "10.1.1.1/24", "interface": 0.0}]}`;
    const answers: string[] = [];
    for (const by of ["ref", "cnibox"] as const) {
      const request = { type: "tuning", by, netns: pod, stdin: `{${head}, "mtu": 0, ${result}}` };
      const { code, stdout } = await runPlugin(node, { command: "ADD", ...request });
      assertEquals(code, 0, stdout);
      answers.push(stdout);
    }
    assert(answers[0] === answers[1], answers.join("\n"));
  },
);
