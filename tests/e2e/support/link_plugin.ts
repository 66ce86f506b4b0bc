/** What is promised of every plugin that makes a link in the container: macvlan, ipvlan, vlan, dummy and tap. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { badIpam, besideReference, dual, failure, fixed, namesakeTest, single, versions } from "./main_plugin.ts";
import type { Need } from "./needs.ts";
import { inVm } from "./vm.ts";
import type { Namespace, Node } from "./node.ts";
import { Attachment, call, type Json, runPlugin } from "./plugins.ts";
import { type Allowed, assertSameState, difference, hostLocalLeftovers, snapshot } from "./snapshot.ts";
import { interopTest, nodeTest } from "./test.ts";
import { eventually } from "./traffic.ts";
import { childPrograms, temporaryFiles, tracePlugin } from "./trace.ts";

/** A plugin and how it is used in these tests. */
export interface LinkPlugin {
  type: string;
  needs: Need[];
  /** The plugin's own keys; IPAM is added. */
  keys: Json;
  /** Makes what the keys name. */
  prepare?: (node: Node) => Promise<unknown>;
  /** Most child processes of ADD with an IPv4 address, and with both families. */
  children: [four: number, both: number];
  /** The reference's words for a name that is taken in the container. */
  taken: RegExp;
  /** What differs from the reference, and why that is better is said there. */
  better?: Allowed[];
  /** The reference cannot check what it added. */
  interop?: Json;
  /** Is IPAM required? Then what is said without. */
  withoutIpam?: RegExp;
}

const stays = { allow: [hostLocalLeftovers] };
const lo: Allowed = /^ipv[46]\/conf\/(lo|all|default)\b/;

/** Registers the tests. */
export function linkPluginTests(plugin: LinkPlugin): void {
  const { type, needs, keys } = plugin;
  const net = (more: Json = {}): Json => ({ cniVersion: "1.1.0", name: "net1", type, ...keys, ipam: dual, ...more });
  const ready = async (node: Node) => {
    await plugin.prepare?.(node);
    return await node.container("a");
  };

  nodeTest(
    `${type} DEL leaves nothing behind, whatever is gone before, and may be repeated`,
    { needs },
    async ({ node }) => {
      await ready(node);
      const first = new Attachment(node, net({ ipam: single }), await node.container("first"));
      await first.add();
      await first.del();
      const before = await snapshot(node);
      const bare = (pod: Namespace, netns: string | null) =>
        call(node, { type, command: "DEL", netns, containerId: pod.name, stdin: net({ ipam: single }) });
      const ways: [string, (one: Attachment, pod: Namespace) => Promise<unknown>][] = [
        ["with it", (one) => one.del()],
        ["without prevResult", (_, pod) => bare(pod, `/run/netns/${pod.name}`)],
        ["without the namespace", (one) => one.del("cnibox", { withoutNetns: true })],
        ["namespace empty", (_, pod) => bare(pod, "")],
        ["namespace a plain file", (_, pod) => bare(pod, "/etc/hostname")],
        ["namespace gone", async (one, pod) => {
          await node.removeContainer(pod);
          await one.del();
        }],
        ["link gone", async (one, pod) => {
          await pod.ip("link del eth0");
          await one.del();
        }],
      ];
      // A call takes more than a second in the VM; what these have in common is tried on the machine's own kernel.
      for (const [at, [how, del]] of (inVm ? ways.filter(([how]) => !/empty|plain|link/.test(how)) : ways).entries()) {
        const pod = await node.container(`p${at}`);
        const inside = await snapshot(pod);
        const one = new Attachment(node, net({ ipam: single }), pod);
        await one.add();
        await del(one, pod);
        if (at < 2) await del(one, pod);
        if (at < 2) assertSameState(inside, await snapshot(pod), { allow: [lo] });
        // Where nobody could say which namespace it was, the link goes with that.
        if (how !== "namespace gone") await node.removeContainer(pod);
        let changed: string[] = [];
        await eventually(how, async () => {
          changed = difference(before, await snapshot(node), stays);
          return changed.length === 0;
        }).catch(() => assertEquals(changed, [], how));
      }
    },
  );

  nodeTest(
    `${type} ADD that fails leaves nothing behind, and the next one works`,
    { needs: [...needs, "veth"] },
    async ({ node }) => {
      const pod = await ready(node);
      await badIpam(node);
      await pod.ip("link add taken type veth peer name taken1");
      await pod.sysctl("ipv6/conf/lo/disable_ipv6", 0);
      const [host, inside] = [await snapshot(node), await snapshot(pod)];
      const route = { dst: "10.99.0.0/24", gw: "10.98.0.1" };
      const cases: [string, Json, RegExp, string?][] = [
        ["unknown IPAM", { ipam: { type: "nope" } }, /failed to find plugin "nope" in path \[\/opt\/cni\/bin\]/],
        ["failing IPAM", { ipam: { type: "failing" } }, /no lease/],
        ["empty IPAM", { ipam: { type: "empty" } }, /^IPAM plugin returned missing IP config$/],
        [
          "route",
          { ipam: { ...dual, routes: [route] } },
          /^failed to add route '\{10\.99\.0\.0 ffffff00\} via 10\.98\.0\.1 dev eth0 metric 0 \(Scope: universe, Table: 0\)': network is unreachable$/,
        ],
        [
          "address twice",
          { ipam: fixed(["10.1.0.2/24", "10.1.0.2/24"]) },
          /^failed to add IP addr 10\.1\.0\.2\/24 to "eth0": (file exists|address already in use)$/,
        ],
        ["name taken", {}, plugin.taken, "taken"],
        [
          "0.2.0 without addresses",
          { cniVersion: "0.2.0", ipam: undefined },
          plugin.withoutIpam ?? /^cannot convert: no valid IP addresses$/,
        ],
      ];
      for (const [what, more, msg, ifName = "eth0"] of cases) {
        const error = await failure(node, { type, command: "ADD", netns: pod, ifName, stdin: net(more) });
        assertMatch(error.msg, msg, what);
        if (what === "failing IPAM") assertEquals(error.code, 11);
        try {
          assertSameState(host, await snapshot(node), stays);
          assertSameState(inside, await snapshot(pod), { allow: [lo] });
        } catch (error) {
          throw new Error(`${what}: ${(error as Error).message}`);
        }
      }
      const one = new Attachment(node, net(), pod);
      await one.add();
      await one.check();
    },
  );

  nodeTest(`${type} DEL leaves a link of another kind alone`, { needs: [...needs, "veth"] }, async ({ node }) => {
    const pod = await ready(node);
    await pod.ip("link add eth0 type veth peer name eth1");
    const inside = await snapshot(pod);
    const { code, stderr, stdout } = await runPlugin(node, { type, command: "DEL", netns: pod, stdin: net() });
    assertEquals([code, stdout], [0, ""]);
    assertMatch(stderr, /the container's "eth0" is a veth link/);
    assertSameState(inside, await snapshot(pod));
  });

  nodeTest(
    `${type} DEL of an interface "if2" does not delete the link with the index 2`,
    { needs: [...needs, "veth"] },
    async ({ node }) => {
      const pod = await ready(node);
      await pod.ip("link add name one type veth peer name two");
      const { ifindex } = (await pod.ipJson("link", "show", "one"))[0];
      const ifName = `if${ifindex}`;
      const prevResult = { cniVersion: "1.1.0", interfaces: [{ name: ifName, sandbox: pod.netns }] };
      for (const stdin of [net(), net({ prevResult })]) {
        await call(node, {
          type,
          command: "DEL",
          netns: pod,
          ifName,
          stdin,
        });
      }
      assertEquals((await pod.ipJson("link")).length, 3);
      const one = new Attachment(node, net(), pod, { ifName });
      await one.add();
      await one.check();
      await one.del();
      assertEquals((await pod.ipJson("link")).length, 3);
    },
  );

  nodeTest(`${type} touches no link of the host's own namespace`, { needs: [...needs, "veth"] }, async ({ node }) => {
    await ready(node);
    await node.ip("link add eth0 type veth peer name eth1");
    const before = await snapshot(node);
    for (const command of ["ADD", "CHECK", "DEL"]) {
      const error = await failure(node, { type, command, netns: "/proc/1/ns/net", containerId: "a", stdin: net() });
      assertEquals([error.code, error.msg], [8, "plugin's netns and netns from CNI_NETNS should not be the same"]);
    }
    assertSameState(before, await snapshot(node), stays);
  });

  namesakeTest(type, { needs, net: net(), prepare: plugin.prepare });

  nodeTest(`${type} takes a namespace by any path, and an interface name with a dot`, { needs }, async ({ node }) => {
    const pod = await ready(node);
    await node.sh('touch "$2"; mount --bind "$1" "$2"', pod.netns ?? "", "/run/other file");
    for (const netns of [`/proc/${await node.processIn(pod)}/ns/net`, "/run/other file"]) {
      const one = new Attachment(node, net(), netns, { ifName: "net.100" });
      const { interfaces } = await one.add();
      assertEquals([interfaces[0].name, interfaces[0].sandbox], ["net.100", netns]);
      await one.check();
      await one.del();
      assertEquals((await pod.ipJson("link")).length, 1);
    }
  });

  nodeTest(`${type} adds, checks and deletes in every version of the protocol`, { needs }, async ({ node }) => {
    const pod = await ready(node);
    for (const cniVersion of inVm ? ["0.2.0", "0.4.0", "1.1.0"] : versions) {
      const one = new Attachment(node, net({ cniVersion, ipam: fixed(["10.1.0.2/24 10.1.0.1"]) }), pod);
      const result = await one.add();
      const mac = (await pod.ipJson("link", "show", "eth0"))[0].address;
      const ip = { address: "10.1.0.2/24", gateway: "10.1.0.1" };
      const interfaces = [{ name: "eth0", mac, sandbox: "/run/netns/a" }];
      const expected = cniVersion < "0.3.0"
        ? { cniVersion, ip4: { ip: ip.address, gateway: ip.gateway }, dns: {} }
        : cniVersion < "1.0.0"
        ? { cniVersion, interfaces, ips: [{ version: "4", interface: 0, ...ip }], dns: {} }
        : { cniVersion, interfaces, ips: [{ interface: 0, ...ip }] };
      assertEquals(result, expected);
      if (cniVersion === "0.4.0") await one.check();
      await one.del();
    }
  });

  nodeTest(
    `${type} CHECK notices what is missing or changed, and nothing right after ADD`,
    { needs: [...needs, "bridge"] },
    async ({ node }) => {
      const pod = await ready(node);
      const routes = [{ dst: "0.0.0.0/0" }, { dst: "10.9.0.0/16", gw: "10.1.0.9" }, { dst: "10.8.0.0/16", table: 300 }];
      const conf = net({ ipam: fixed(["10.1.0.2/24 10.1.0.1", "10.5.0.2/32"], routes) });
      const one = new Attachment(node, conf, pod);
      await one.add();
      await one.check();
      // Each is looked at before the one above it, so that nothing has to be fixed.
      const damage: [string[], RegExp][] = [
        [["route del 10.9.0.0/16"], /^Expected Route .*10\.9\.0\.0.* not found in routing table$/],
        [["link set eth0 down"], /^(Interface eth0 is down|Failed to find Gateway 10\.1\.0\.1 for interface eth0)$/],
        [
          ["link set eth0 up", "addr del 10.1.0.2/24 dev eth0"],
          /^Failed to match addr 10\.1\.0\.2\/24 on interface eth0$/,
        ],
        [
          ["link del eth0", "link add eth0 type bridge"],
          new RegExp(`^[Ee]rror: Container interface eth0 not of type ${type}$`),
        ],
        [["link del eth0"], /ontainer.* (name in prevResult: eth0 not found|link eth0)$/],
      ];
      const request = { type, command: "CHECK", netns: pod };
      for (const [lines, msg] of damage) {
        await pod.ip(...lines);
        assertMatch((await failure(node, { ...request, stdin: one.request(conf, one.result) })).msg, msg);
      }
      const bare = await failure(node, { ...request, stdin: net({ ipam: fixed(["10.1.0.2/24"]) }) });
      assertMatch(bare.msg, /[Rr]equired prevResult missing$/);
    },
  );

  nodeTest(`${type} turns IPv6 on in a container that has it off`, { needs }, async ({ node }) => {
    const pod = await ready(node);
    for (const name of ["all", "default"]) await pod.sysctl(`ipv6/conf/${name}/disable_ipv6`, 1);
    const one = new Attachment(node, net({ ipam: fixed(["fd01::2/64"]) }), pod);
    await one.add();
    for (const name of ["lo", "eth0"]) assertEquals(await pod.sysctl(`ipv6/conf/${name}/disable_ipv6`), "0");
    await one.check();
  });

  nodeTest(`${type} starts few processes, and opens nothing that others may write`, {
    needs: [...needs, "tool:strace"],
  }, async ({ node }) => {
    const pod = await ready(node);
    for (const [at, ipam] of [fixed(["10.1.0.2/24 10.1.0.1"]), { ...dual, ranges: dual.ranges }].entries()) {
      const stdin = net({ ipam });
      const add = await tracePlugin(node, { type, command: "ADD", netns: pod, stdin });
      assertEquals(add.output.code, 0, add.output.stdout);
      assertEquals(temporaryFiles(add), []);
      const started = add.execs.slice(1).filter(({ path }) => !path.endsWith("/sleep")).map(({ pid }) => pid);
      const processes = new Set(started).size;
      assert(processes <= (plugin.children[at] ?? 0), `ADD started ${processes}: ${childPrograms(add)}`);
      const del = await tracePlugin(node, {
        type,
        command: "DEL",
        netns: pod,
        stdin: { ...stdin, prevResult: add.output.json },
      });
      assertEquals(del.output.code, 0, del.output.stdout);
      assertEquals(del.children, 1, `DEL started ${childPrograms(del)}`);
    }
  });

  nodeTest(`${type} forwards STATUS and GC to the IPAM plugin`, { needs }, async ({ node }) => {
    const pod = await ready(node);
    await badIpam(node);
    const one = new Attachment(node, net(), pod);
    await one.add();
    assertEquals(await call(node, { type, command: "STATUS", stdin: net() }), undefined);
    const down = await failure(node, { type, command: "STATUS", stdin: net({ ipam: { type: "failing" } }) });
    assertEquals([down.code, down.msg], [11, "no lease"]);
    const leases = () => node.list("/var/lib/cni/networks/net1");
    const gc = (valid: Json) => call(node, { type, command: "GC", stdin: net({ "cni.dev/valid-attachments": valid }) });
    await gc([{ containerID: "a", ifname: "eth0" }]);
    assertEquals((await leases()).includes("10.22.0.2"), true);
    await gc([]);
    assertEquals((await leases()).includes("10.22.0.2"), false);
  });

  nodeTest(`${type} leaves the same state as the reference`, { needs: [...needs, "reference"] }, async ({ node }) => {
    await plugin.prepare?.(node);
    const routes = [{ dst: "0.0.0.0/0" }, { dst: "::/0" }, { dst: "10.9.0.0/16", gw: "10.1.0.9" }, {
      dst: "10.8.0.0/16",
      priority: 50,
    }, { dst: "10.7.0.0/16", table: 300 }];
    const ipam = fixed(["10.1.0.2/24 10.1.0.1", "10.2.0.2/31", "fd01::2/64 fd01::1"], routes);
    const conf = net({ cniVersion: "1.0.0", ipam, dns: { nameservers: ["10.1.0.53"] }, ...plugin.interop });
    assertEquals(await besideReference(node, conf, { allow: plugin.better ?? [] }), []);
  });

  interopTest(`${type}, both families`, { needs }, async ({ adder, checker, deleter }, node) => {
    const pod = await ready(node);
    const before = await snapshot(node);
    const one = new Attachment(node, net({ cniVersion: "1.0.0", ...plugin.interop }), pod);
    await one.add(adder);
    await one.check(checker);
    await one.del(deleter);
    assertSameState(before, await snapshot(node), stays);
    assertEquals((await pod.ipJson("link")).map((link) => link.ifname), ["lo"]);
  });
}
