/** The image under containerd: imported, and run with the node's own folders as the manifest mounts them. */
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { VERSION } from "../../lib/version.ts";
import { must } from "./support/operator.ts";
import { importArguments, runtimeTest, startContainerd } from "./support/runtimes.ts";
import { eventually } from "./support/traffic.ts";

const NAME = `localhost/cnibox:${VERSION}`;
const ETCD = "http://127.0.0.1:2379";

runtimeTest(
  "containerd imports the image, and its one file installs plugins and runs the node with the node's own tools",
  [
    "tool:containerd",
    "tool:ctr",
    "tool:etcd",
  ],
  async ({ node, cgroup }) => {
    const { ctr } = await startContainerd(node, cgroup);
    const { stdout } = await must(node, ["image", "/run/image.tar", "--json"]);
    const { digest } = JSON.parse(stdout);
    await ctr("image", "import", ...await importArguments(node), "/run/image.tar");
    assertStringIncludes(await ctr("image", "ls", "-q"), NAME);
    assertStringIncludes(await ctr("image", "ls"), digest);

    const readOnly = ["/usr", "/bin", "/sbin", "/lib", ...(Deno.build.arch === "x86_64" ? ["/lib64"] : [])];
    const written = ["/run/plugins:/opt/cni/bin", ...[
      "/run/cnibox",
      "/var/lib/cnibox",
      "/run/flannel",
      "/etc/cni/net.d",
    ]];
    for (const path of written) await node.run("mkdir", "-p", path.split(":")[0]!);
    const mounts = [
      ...readOnly.map((path) => `type=bind,src=${path},dst=${path},options=rbind:ro`),
      ...written.map((path) => `type=bind,src=${path.split(":")[0]},dst=${path.split(":").at(-1)},options=rbind:rw`),
      "type=bind,src=/etc/cnibox,dst=/etc/cnibox,options=rbind:ro",
    ].flatMap((one) => ["--mount", one]);
    await node.write(
      "/etc/cnibox/node.json",
      JSON.stringify({
        node: "one",
        store: { etcd: { endpoints: [ETCD] } },
        conflist: {},
        network: { Network: "10.5.0.0/16", Backend: { Type: "host-gw" } },
      }),
    );
    let count = 0;
    const inside = (...args: string[]) =>
      ctr(
        ...[
          "run",
          "--rm",
          "--snapshotter",
          "native",
          "--net-host",
          "--cap-add",
          "CAP_NET_ADMIN",
          "--cap-add",
          "CAP_NET_RAW",
        ],
        ...[...mounts, NAME, `c${count++}`, "/cnibox", ...args],
      );

    assertMatch(await inside("install", "--replace"), /bridge +-> cnibox/);
    assertEquals(await node.run("/run/plugins/cnibox", "version"), `cnibox ${VERSION}\n`);

    await node.ip(
      "link add eth0 type veth peer name eth1",
      "addr add 10.99.0.1/24 dev eth0",
      "link set eth0 up",
      "link set eth1 up",
      "route add default via 10.99.0.254",
    );
    node.spawn([
      "etcd",
      "--data-dir",
      "/run/etcd",
      "--log-level",
      "error",
      "--listen-client-urls",
      ETCD,
      "--advertise-client-urls",
      ETCD,
    ]);
    await eventually(
      "etcd answers",
      async () => (await node.exec(["curl", "-s", "-f", `${ETCD}/health`])).code === 0,
      60_000,
    );
    const now = JSON.parse(await inside("node", "--once", "--json"));
    assertEquals([now.ready, now.problems, now.subnets.length, now.store.state], [true, [], 1, "connected"]);
    assertMatch((await node.read("/run/flannel/subnet.env"))!, /^FLANNEL_SUBNET=10\.5\.\d+\.1\/24$/m);
    assertEquals(await node.list("/etc/cni/net.d"), ["10-cnibox.conflist"]);
    assertMatch(await node.run("nft", "list", "table", "inet", "cnibox_node"), /masquerade/);

    // As the Job does it.
    assertMatch(await inside("node", "--withdraw"), /out of the network/);
    assertMatch(await inside("uninstall"), /cnibox +removed/);
    assertEquals(
      [await node.list("/run/plugins"), await node.list("/etc/cni/net.d"), await node.list("/run/flannel")],
      [[], [], []],
    );
    assertEquals((await node.list("/run/cnibox")).filter((name) => name.startsWith("node.")), []);
  },
);
