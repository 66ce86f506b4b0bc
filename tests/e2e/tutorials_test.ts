/** Widely read introductions to CNI, their commands as people type them. */
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { dnsmasq, switchWithServer } from "./support/dhcp.ts";
import { type Node, nodeTest } from "./support/mod.ts";

const PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/** Lines typed into one shell, one after the other; the first that fails ends it. Returns what they print. */
async function typed(node: Node, lines: string): Promise<string> {
  const { code, stdout, stderr } = await node.exec(["/bin/sh", "-ec", `cd /root 2>/dev/null || cd /; ${lines}`], {
    env: { PATH },
  });
  assertEquals(code, 0, `${lines}\n${stderr}${stdout}`);
  return stdout;
}

const DEMO = '{"cniVersion":"1.0.0","name":"demo","type":"bridge","bridge":"br0","isGateway":true,"ipMasq":true,' +
  '"ipam":{"type":"host-local","subnet":"10.0.0.0/24","routes":[{"dst":"0.0.0.0/0"}]}}';

nodeTest("by hand: a namespace, then a docker container without a network, both by one single configuration", {
  needs: ["bridge", "veth", "iptables"],
}, async ({ node }) => {
  await node.write("/run/demo/demo.conflist", DEMO);
  const add = JSON.parse(
    await typed(
      node,
      `ip netns add demo
cd /run/demo
CNI_COMMAND=ADD CNI_CONTAINERID=demo CNI_NETNS=/var/run/netns/demo CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin \\
  /opt/cni/bin/bridge < demo.conflist`,
    ),
  );
  assertEquals(add.interfaces.map(({ name }: { name: string }) => name.replace(/^veth.+/, "veth")), [
    "br0",
    "veth",
    "eth0",
  ]);
  assertEquals(add.interfaces[2].sandbox, "/var/run/netns/demo");
  assertEquals(add.ips, [{ interface: 2, address: "10.0.0.2/24", gateway: "10.0.0.1" }]);
  assertEquals(add.routes, [{ dst: "0.0.0.0/0" }]);
  assertMatch(await typed(node, "ip netns exec demo ip route"), /^default via 10\.0\.0\.1 dev eth0/m);

  // docker keeps a container's namespace in a file of its own, and its ID is 64 hexadecimal digits.
  const id = "5f1e".repeat(16), key = "0fe1c2d3b4a5";
  await typed(
    node,
    `mkdir -p /run/docker/netns; touch /run/docker/netns/${key}; ip netns add tmp
mount --bind /run/netns/tmp /run/docker/netns/${key}`,
  );
  const docker = (verb: string) =>
    typed(
      node,
      `cd /run/demo; CNI_COMMAND=${verb} CNI_CONTAINERID=${id} CNI_NETNS=/var/run/docker/netns/${key} \\
  CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin /opt/cni/bin/bridge < demo.conflist`,
    );
  assertEquals(JSON.parse(await docker("ADD")).ips[0].address, "10.0.0.3/24");
  await typed(node, "ip netns exec tmp ping -c 1 -W 5 10.0.0.2");
  assertEquals(await docker("DEL"), "");
  assertEquals(
    await typed(
      node,
      `cd /run/demo; CNI_COMMAND=DEL CNI_CONTAINERID=demo CNI_NETNS=/var/run/netns/demo CNI_IFNAME=eth0 \\
  CNI_PATH=/opt/cni/bin /opt/cni/bin/bridge < demo.conflist; ip netns del demo`,
    ),
    "",
  );
});

nodeTest("by hand with the plugins first in PATH and everything exported", {
  needs: ["bridge", "veth", "iptables"],
}, async ({ node }) => {
  await node.write(
    "/etc/cni/net.d/10-mynet.conf",
    '{"cniVersion":"0.4.0","name":"mynet","type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,' +
      '"ipam":{"type":"host-local","subnet":"172.19.0.0/24","routes":[{"dst":"0.0.0.0/0"}]}}',
  );
  const output = await typed(
    node,
    `ip netns add ns1
export CNI_PATH=/opt/cni/bin; export PATH=$CNI_PATH:$PATH
export CNI_CONTAINERID=ns1 CNI_NETNS=/var/run/netns/ns1 CNI_IFNAME=eth0
export CNI_COMMAND=ADD
bridge < /etc/cni/net.d/10-mynet.conf
ip netns exec ns1 ip -4 -br addr show eth0
export CNI_COMMAND=DEL
echo ==; bridge < /etc/cni/net.d/10-mynet.conf; echo $?`,
  );
  assertStringIncludes(output, "172.19.0.2/24");
  assertEquals(output.split("==\n")[1], "0\n");
  const wrong = await node.exec(["/bin/sh", "-c", 'echo \'{"cniVersion":"1.0.0","name":"x y"}\' | bridge'], {
    env: {
      PATH: `/opt/cni/bin:${PATH}`,
      CNI_COMMAND: "ADD",
      CNI_CONTAINERID: "a",
      CNI_IFNAME: "eth0",
      CNI_NETNS: "/n",
    },
  });
  const { code, msg } = JSON.parse(wrong.stdout);
  assertEquals([wrong.code, typeof code, typeof msg], [1, "number", "string"]);
});

nodeTest("one-liners on stdin: the program that is called does its work, whatever type it reads", {
  needs: ["bridge", "veth", "iptables"],
}, async ({ node }) => {
  const bridged = await typed(
    node,
    `ip netns add a; mkdir -p /run/w; ln -s /opt/cni/bin /run/w/bin; cd /run/w
echo '{"cniVersion":"0.3.1","name":"mynet","type":"macvlan","bridge":"cni0","isGateway":true,"ipMasq":true,"ipam":{"type":"host-local","subnet":"10.244.1.0/24","routes":[{"dst":"0.0.0.0/0"}]}}' | CNI_COMMAND=ADD CNI_NETNS=/var/run/netns/a CNI_PATH=./bin CNI_IFNAME=eth0 CNI_CONTAINERID=a CNI_VERSION=0.3.1 ./bin/bridge`,
  );
  assertEquals(JSON.parse(bridged).interfaces[0].name, "cni0");
  const refused = await node.exec([
    "/bin/sh",
    "-c",
    `cd /run/w; echo '{"cniVersion":"0.3.1","type":"IGNORED","name":"a","ipam":{"type":"host-local","subnet":"10.1.2.3/24"}}' | CNI_COMMAND=ADD CNI_NETNS=/var/run/netns/a CNI_PATH=./bin CNI_IFNAME=eth0 CNI_CONTAINERID=a ./bin/host-local`,
  ]);
  assertEquals(refused.code, 1);
  assertStringIncludes(refused.stdout, "10.1.2.0/24");
});

nodeTest("cnitool: a bridge by name, its result, the namespace, and del", {
  needs: ["bridge", "veth", "iptables"],
}, async ({ node }) => {
  await node.write(
    "/etc/cni/net.d/10-mynet.conf",
    '{"cniVersion":"0.3.0","name":"mynet","type":"bridge","bridge":"mynet0","isDefaultGateway":true,' +
      '"forceAddress":false,"ipMasq":true,"hairpinMode":true,"ipam":{"type":"host-local","subnet":"10.10.0.0/16"}}',
  );
  const result = JSON.parse(
    await typed(
      node,
      `export CNI_PATH=/opt/cni/bin; ip netns add ns
/opt/cni/bin/cnitool add mynet /var/run/netns/ns`,
    ),
  );
  assertEquals([result.cniVersion, result.ips[0].address, result.ips[0].version], ["0.3.0", "10.10.0.2/16", "4"]);
  assertStringIncludes(await typed(node, "ip netns exec ns ip addr"), "10.10.0.2/16");
  assertStringIncludes(await typed(node, "ip netns exec ns ip route"), "default via 10.10.0.1 dev eth0");
  assertEquals(await typed(node, "CNI_PATH=/opt/cni/bin /opt/cni/bin/cnitool del mynet /var/run/netns/ns"), "");
});

nodeTest("cnitool: a first configuration of containerd, of version 0.2.0", {
  needs: ["bridge", "veth", "iptables"],
}, async ({ node }) => {
  await node.write(
    "/etc/cni/net.d/10-mynet.conf",
    '{"cniVersion":"0.2.0","name":"mynet","type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,' +
      '"ipam":{"type":"host-local","subnet":"10.22.0.0/16","routes":[{"dst":"0.0.0.0/0"}]}}',
  );
  const result = JSON.parse(
    await typed(node, "ip netns add ns; CNI_PATH=/opt/cni/bin /opt/cni/bin/cnitool add mynet /var/run/netns/ns"),
  );
  assertEquals([result.cniVersion, result.ip4.ip, result.ip4.gateway], ["0.2.0", "10.22.0.2/16", "10.22.0.1"]);
  await typed(node, "CNI_PATH=/opt/cni/bin /opt/cni/bin/cnitool del mynet /var/run/netns/ns");
});

nodeTest("cnitool: a chain with a port mapping on 127.0.0.1", {
  needs: ["bridge", "veth", "iptables"],
}, async ({ node }) => {
  await node.write(
    "/etc/mine/mynet.conflist",
    '{"cniVersion":"0.3.0","name":"mynet","plugins":[{"type":"bridge","bridge":"mynet","ipMasq":true,"isGateway":true,' +
      '"ipam":{"type":"host-local","subnet":"10.244.10.0/24","routes":[{"dst":"0.0.0.0/0"}]}},' +
      '{"type":"portmap","capabilities":{"portMappings":true}}]}',
  );
  const made = await typed(
    node,
    `ln -s /opt/cni/bin/cnitool /run/cnitool; cd /run
export CAP_ARGS='{"portMappings":[{"hostPort":9090,"containerPort":80,"protocol":"tcp","hostIP":"127.0.0.1"}]}'
ip netns add test
CNI_PATH=/opt/cni/bin NETCONFPATH=/etc/mine ./cnitool add mynet /var/run/netns/test`,
  );
  const address = JSON.parse(made).ips[0].address.split("/")[0];
  assertEquals(address, "10.244.10.2");
  const rules = await typed(node, `iptables-save | grep ${address}`);
  assertMatch(rules, /-d 127\.0\.0\.1\/32 -p tcp -m tcp --dport 9090 -j DNAT --to-destination 10\.244\.10\.2:80/);
  // What comes from the host itself is masqueraded by its mark.
  assertMatch(await node.run("iptables-save"), /-s 127\.0\.0\.1\/32 .*--dport 9090 -j CNI-HOSTPORT-SETMARK/);
  await typed(
    node,
    `cd /run; export CAP_ARGS='{"portMappings":[{"hostPort":9090,"containerPort":80,"protocol":"tcp","hostIP":"127.0.0.1"}]}'
CNI_PATH=/opt/cni/bin NETCONFPATH=/etc/mine ./cnitool del mynet /var/run/netns/test`,
  );
  assertEquals((await node.run("iptables-save")).includes(address), false);
});

nodeTest("cnitool: ptp by name", { needs: ["veth", "iptables"] }, async ({ node }) => {
  await node.write(
    "/etc/cni/net.d/10-myptp.conf",
    '{"cniVersion":"0.4.0","name":"myptp","type":"ptp","ipMasq":true,"ipam":{"type":"host-local",' +
      '"subnet":"172.16.29.0/24","routes":[{"dst":"0.0.0.0/0"}]}}',
  );
  const output = await typed(
    node,
    `ip netns add testing; ln -s /opt/cni/bin /run/bin; cd /run; export PATH=/opt/cni/bin:$PATH
CNI_PATH=./bin cnitool add myptp /var/run/netns/testing
CNI_PATH=./bin cnitool check myptp /var/run/netns/testing
ip -n testing addr
CNI_PATH=./bin cnitool del myptp /var/run/netns/testing
ip netns del testing`,
  );
  assertStringIncludes(output, "inet 172.16.29.2/24");
});

nodeTest("cnitool: macvlan by name in each mode, and no answer between host and container", {
  needs: ["veth", "macvlan"],
}, async ({ node }) => {
  await node.outside({ uplink: "eth0", defaultRoutes: false });
  for (const mode of ["bridge", "vepa", "private", "passthru"]) {
    await node.write(
      "/etc/cni/net.d/10-mynet.conf",
      `{"cniVersion":"0.4.0","name":"mynet","type":"macvlan","master":"eth0","mode":"${mode}","ipam":{"type":"host-local",` +
        '"subnet":"192.0.2.0/24","rangeStart":"192.0.2.100","routes":[{"dst":"0.0.0.0/0"}]}}',
    );
    const output = await typed(
      node,
      `ip netns add ns; export CNI_PATH=/opt/cni/bin
/opt/cni/bin/cnitool add mynet /var/run/netns/ns
ip netns exec ns ip -d link show eth0
ip netns exec ns ip route
ip netns exec ns ping -c 1 -W 1 192.0.2.1 || echo no answer
/opt/cni/bin/cnitool del mynet /var/run/netns/ns
ip netns del ns`,
    );
    assertStringIncludes(output, `macvlan mode ${mode}`);
    assertStringIncludes(output, "default via 192.0.2.1 dev eth0");
    assertStringIncludes(output, "no answer");
  }
});

nodeTest("cnitool: ipvlan by name in modes l2 and l3, and not on a master that serves macvlan", {
  needs: ["veth", "macvlan", "ipvlan"],
}, async ({ node }) => {
  await node.outside({ uplink: "eth0", defaultRoutes: false });
  const network = (name: string, type: string, mode: string) =>
    node.write(
      `/etc/cni/net.d/${name}.conf`,
      JSON.stringify({
        cniVersion: "0.4.0",
        name,
        type,
        master: "eth0",
        mode,
        ipam: { type: "host-local", subnet: "10.1.2.0/24" },
      }),
    );
  await network("other", "macvlan", "bridge");
  for (const mode of ["l2", "l3"]) {
    await network("mynet", "ipvlan", mode);
    const output = await typed(
      node,
      `ip netns add ns; export CNI_PATH=/opt/cni/bin
/opt/cni/bin/cnitool add mynet /var/run/netns/ns
ip netns exec ns ip -d link show eth0
/opt/cni/bin/cnitool add other /var/run/netns/ns 2>&1 || echo refused
/opt/cni/bin/cnitool del mynet /var/run/netns/ns
ip netns del ns`,
    );
    assertMatch(output, new RegExp(`ipvlan +mode ${mode}\\b`));
    assertMatch(output, /busy[^]*\nrefused\n/);
  }
});

nodeTest("dhcp: the daemon in the background of a shell, then a network that leases its addresses", {
  needs: ["bridge", "veth", "macvlan", "tool:dnsmasq", "tool:udhcpc"],
}, async ({ node }) => {
  const world = await switchWithServer(node);
  await node.ip("link add eth0 up type veth peer name p1 netns /run/netns/world");
  await world.ip("link set p1 master sw0", "link set p1 up");
  await dnsmasq(world);
  await node.write(
    "/etc/cni/net.d/10-mynet.conf",
    '{"cniVersion":"0.4.0","name":"mynet","type":"macvlan","master":"eth0","ipam":{"type":"dhcp"}}',
  );
  const output = await typed(
    node,
    `/opt/cni/bin/dhcp daemon >/run/dhcp.log 2>&1 &
until [ -S /run/cni/dhcp.sock ]; do sleep 0.1; done
ip netns add ns; export CNI_PATH=/opt/cni/bin
/opt/cni/bin/cnitool add mynet /var/run/netns/ns
ip netns exec ns ip addr show eth0
/opt/cni/bin/cnitool del mynet /var/run/netns/ns
ip netns del ns
kill $!; wait`,
  );
  assertMatch(output, /"address": "192\.168\.1\.\d+\/24"/);
  assertMatch(output, /inet 192\.168\.1\.\d+\/24/);
});
