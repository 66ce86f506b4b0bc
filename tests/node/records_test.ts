/** flannel's configuration and records, and Node objects of Kubernetes. */
import { assertEquals, assertThrows } from "@std/assert";
import { formatAddress, formatPrefix, parsePrefix } from "../../lib/net/cidr.ts";
import {
  derivedMac,
  type NetworkConf,
  parseNetworkConf,
  parseSubnetKey,
  parseSubnetRecord,
  recordOfNode,
  subnetKey,
  subnetRecord,
} from "../../lib/node/records.ts";
import { pickSubnets } from "../../lib/node/subnets.ts";
import { conflistText, subnetEnv } from "../../lib/node/files.ts";
import { CniError } from "../../lib/cni/error.ts";

const DUAL = {
  Network: "10.5.0.0/16",
  EnableIPv6: true,
  IPv6Network: "fd05::/48",
  Backend: { Type: "vxlan", DirectRouting: true },
};
const dual = parseNetworkConf(JSON.stringify(DUAL), "test");
const prefixes = (...texts: string[]) => texts.map((text) => parsePrefix(text)!);
const shown = (conf: NetworkConf) =>
  conf.rules.map(({ network, length, min, max }) =>
    `${formatPrefix(network)} ${length} ${formatAddress(min)} ${formatAddress(max)}`
  );

Deno.test("a network configuration has flannel's defaults", () => {
  assertEquals(shown(dual), ["10.5.0.0/16 24 10.5.1.0 10.5.255.0", "fd05::/48 64 fd05:0:0:1:: fd05:0:0:ffff::"]);
  assertEquals(dual.backend, { type: "vxlan", vni: 1, port: 8472, directRouting: true });
  const small = parseNetworkConf('{"Network":"10.5.0.0/23","Backend":{"Type":"host-gw"}}', "test");
  assertEquals([shown(small), small.backend.type], [["10.5.0.0/23 25 10.5.0.128 10.5.1.128"], "host-gw"]);
  assertEquals(parseNetworkConf('{"Network":"10.5.0.0/16","Backend":{"Type":"alloc"}}', "test").backend.type, "none");
});

Deno.test("a network configuration that cannot be meant names key and value", () => {
  const message = (conf: unknown) =>
    assertThrows(() => parseNetworkConf(typeof conf === "string" ? conf : JSON.stringify(conf), "etcd"), CniError).msg;
  assertEquals(message({ Network: "10.5.0.0" }), 'etcd: "Network" is "10.5.0.0"');
  assertEquals(message({ ...DUAL, IPv6Network: "10.0.0.0/8" }), 'etcd: "IPv6Network" is "10.0.0.0/8"');
  assertEquals(message({ Network: "10.5.0.0/16", SubnetLen: 17 }), 'etcd: "SubnetLen" is 17');
  assertEquals(message({ Network: "10.5.0.0/16", SubnetMin: "10.5.1.7" }), 'etcd: "SubnetMin" is "10.5.1.7"');
  assertEquals(
    message({ Network: "10.5.0.0/16", Backend: { Type: "ipip" } }),
    'etcd: backend type "ipip" is not supported',
  );
  assertEquals(message({ EnableIPv4: false }), "etcd: neither IPv4 nor IPv6 is enabled");
});

Deno.test("keys of subnets are flannel's, and any other key is not one", () => {
  for (
    const [key, subnets] of [
      ["10.5.34.0-24", ["10.5.34.0/24"]],
      ["10.5.34.0-24&fd05:0:0:22::-64", ["10.5.34.0/24", "fd05:0:0:22::/64"]],
      ["0.0.0.0-0&fd05:0:0:22::-64", ["fd05:0:0:22::/64"]],
    ] as const
  ) {
    assertEquals(parseSubnetKey(key)?.map(formatPrefix), [...subnets]);
    assertEquals(subnetKey(prefixes(...subnets)), key);
  }
  for (const key of ["", "10.5.34.1-24", "10.5.34.0-33", "0.0.0.0-0", "x10.5.34.0-24", "10.5.34.0-24/x"]) {
    assertEquals(parseSubnetKey(key), undefined, key);
  }
});

Deno.test("a record of flanneld is read, and ours has flannel's members", () => {
  const text =
    '{"PublicIP":"10.99.0.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5A:20:e2:12:7d:a2"}}';
  const record = parseSubnetRecord("10.5.34.0-24", text)!;
  assertEquals([record.name, record.backend, record.vni, record.vteps], ["10.99.0.7", "vxlan", 1, {
    4: "5a:20:e2:12:7d:a2",
  }]);
  const own = JSON.parse(subnetRecord({ ...record, name: "n7", machineId: "m" }));
  assertEquals(own, {
    ...JSON.parse(text),
    BackendData: { VNI: 1, VtepMAC: "5a:20:e2:12:7d:a2" },
    Node: "n7",
    MachineID: "m",
  });
  assertEquals(parseSubnetRecord("10.5.34.0-24", JSON.stringify(own)), { ...record, name: "n7", machineId: "m" });
  for (const bad of ["", "[]", "{}", '{"PublicIP":"x"}', '{"PublicIP":"0.0.0.0"}']) {
    assertEquals(parseSubnetRecord("10.5.34.0-24", bad), undefined, bad);
  }
});

Deno.test("a Node object is a record: podCIDRs, internal addresses, flanneld's hardware address or one made of its name", () => {
  const node = {
    metadata: { name: "n1", annotations: {} as Record<string, string> },
    spec: { podCIDRs: ["10.42.3.0/24", "fd42:0:0:3::/64"] },
    status: { addresses: [{ type: "Hostname", address: "n1" }, { type: "InternalIP", address: "10.99.0.1" }] },
  };
  const record = recordOfNode(node, dual.backend);
  assertEquals(record.subnets.map(formatPrefix), node.spec.podCIDRs);
  assertEquals(record.publicIps.map(formatAddress), ["10.99.0.1"]);
  assertEquals(record.vteps, { 4: derivedMac("n1", 4, 1), 6: derivedMac("n1", 6, 1) });
  assertEquals(/^02(:[0-9a-f]{2}){5}$/.test(derivedMac("n1", 4, 1)), true);
  node.metadata.annotations = {
    "flannel.alpha.coreos.com/backend-type": "vxlan",
    "flannel.alpha.coreos.com/backend-data": '{"VNI":1,"VtepMAC":"5a:20:e2:12:7d:a2"}',
  };
  assertEquals(recordOfNode(node, dual.backend).vteps[4], "5a:20:e2:12:7d:a2");
  assertEquals(recordOfNode({ metadata: { name: "n2" } }, dual.backend).subnets, []);
});

Deno.test("a subnet is what the node had, else a random free one, whatever lies between the taken ones", () => {
  const conf = parseNetworkConf('{"Network":"10.5.0.0/22","SubnetLen":24}', "test");
  const pick = (taken: string[], wanted: string[] = [], random = 0, only = false) =>
    pickSubnets(conf, { taken: prefixes(...taken), wanted: prefixes(...wanted), only }, () => random)?.map(
      formatPrefix,
    );
  assertEquals(pick([]), ["10.5.1.0/24"]);
  assertEquals(pick([], [], 0.99), ["10.5.3.0/24"]);
  assertEquals(pick(["10.5.1.0/24"], ["10.5.2.0/24"]), ["10.5.2.0/24"]);
  assertEquals(pick(["10.5.2.0/24"], ["10.5.2.0/24"]), ["10.5.1.0/24"]);
  assertEquals(pick(["10.5.2.0/25", "10.5.3.0/24"], [], 0.99), ["10.5.1.0/24"]);
  assertEquals(pick(["10.5.2.0/23"], [], 0.5), ["10.5.1.0/24"]);
  assertEquals(pick(["10.5.0.0/22"]), undefined);
  // Of another network, or another length.
  assertEquals(pick([], ["10.6.1.0/24"], 0, true), undefined);
  assertEquals(pick([], ["10.5.1.0/25"], 0, true), undefined);
});

Deno.test("the subnet file and the list say what flanneld's do", () => {
  const shares = { conf: dual, subnets: prefixes("10.5.34.0/24", "fd05:0:0:22::/64"), mtu: 1430, ipMasq: true };
  assertEquals(
    subnetEnv(shares),
    "# written by cnibox node\nFLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.34.1/24\nFLANNEL_IPV6_NETWORK=fd05::/48\n" +
      "FLANNEL_IPV6_SUBNET=fd05:0:0:22::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n",
  );
  const template = {
    plugins: [{ type: "bridge", mtu: "$MTU", ipMasq: "$IPMASQ", ipam: { ranges: "$RANGES", routes: "$NETWORKS" } }],
  };
  assertEquals(JSON.parse(conflistText(template, shares)).plugins[0], {
    type: "bridge",
    mtu: 1430,
    ipMasq: false,
    ipam: {
      ranges: [[{ subnet: "10.5.34.0/24" }], [{ subnet: "fd05:0:0:22::/64" }]],
      routes: [{ dst: "10.5.0.0/16" }, { dst: "fd05::/48" }],
    },
  });
  assertEquals(JSON.parse(conflistText(undefined, shares)).plugins[0].type, "flannel");
});
