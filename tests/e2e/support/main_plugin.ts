/** What the tests of several main plugins need: the error of a call, and ours beside the reference. */
import { assertEquals } from "@std/assert";
import type { Need } from "./needs.ts";
import type { Namespace, Node } from "./node.ts";
import { Attachment, type By, type Json, type PluginCall, runPlugin } from "./plugins.ts";
import { type Allowed, difference, type Snapshot, snapshot } from "./snapshot.ts";
import { nodeTest } from "./test.ts";

/** The error of a call that has to fail. */
export async function failure(
  node: Node,
  request: PluginCall,
): Promise<{ code: number; msg: string; details?: string }> {
  const output = await runPlugin(node, request);
  assertEquals(output.code, 1, output.stdout + output.stderr);
  return output.json;
}

/** Host-local with one subnet of each family and default routes. */
export const dual = {
  type: "host-local",
  ranges: [[{ subnet: "10.22.0.0/24" }], [{ subnet: "fd00:22::/64" }]],
  routes: [{ dst: "0.0.0.0/0" }, { dst: "::/0" }],
};

/** Host-local with one subnet. */
export const single = { type: "host-local", ranges: [[{ subnet: "10.22.0.0/24" }]] };

/** Static with these addresses, and gateways where a blank and one follow: "10.1.0.2/24 10.1.0.1". */
export function fixed(addresses: string[], routes: Json[] = []): Json {
  return {
    type: "static",
    addresses: addresses.map((text) => {
      const [address, gateway] = text.split(" ");
      return { address, ...(gateway && { gateway }) };
    }),
    routes,
  };
}

/** All versions of the protocol. */
export const versions = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/** A name for an IPAM plugin that always fails, which {@linkcode badIpam} makes. */
export const failing = "failing";

/** Puts IPAM plugins into our plugin folder: `failing` fails with code 11 and details, `empty` gives no addresses. */
export async function badIpam(node: Node): Promise<void> {
  const error = `{"code":11,"msg":"no lease","details":"try later"}`;
  await node.sh("mkdir -p /run/bin; cp -a /opt/cni/bin/. /run/bin/; mount --bind /run/bin /opt/cni/bin");
  await node.write(
    "/opt/cni/bin/failing",
    `#!/bin/sh\n[ "$CNI_COMMAND" = DEL ] || { echo '${error}'; exit 1; }\n`,
    0o755,
  );
  await node.write(
    "/opt/cni/bin/empty",
    `#!/bin/sh\n[ "$CNI_COMMAND" = DEL ] || echo '{"cniVersion":"1.0.0"}'\n`,
    0o755,
  );
}

/** Waits until all IPv6 addresses are usable; those of a link without carrier never are: three seconds at most. */
export async function settled(...namespaces: Namespace[]): Promise<void> {
  for (const one of namespaces) {
    for (let tries = 60; tries > 0; tries--) {
      if (await one.run("ip", "-6", "addr", "show", "tentative") === "") break;
      await new Promise((done) => setTimeout(done, 50));
    }
  }
}

/**
 * Registers the test that no link of the host is in the way of one in the container that is called the same: nodes have
 * an eth0, too. Before Linux 6.15 the kernel looks for a new link's name in the namespace of who asks for it.
 */
export function namesakeTest(
  type: string,
  { needs, net, prepare }: {
    readonly needs: readonly Need[];
    readonly net: Json;
    readonly prepare?: ((node: Node) => Promise<unknown>) | undefined;
  },
): void {
  nodeTest(
    `${type} attaches by a name that a link of the host has`,
    { needs: [...needs, "veth"] },
    async ({ node }) => {
      await prepare?.(node);
      const pod = await node.container("a");
      await node.ip(
        "link add eth0 type veth peer name eth1",
        "link set eth0 up",
        "link set eth1 up",
        "link property add dev eth1 altname net7",
      );
      const known = ["eth0", "eth1"];
      const own = async () =>
        (await snapshot(node)).links.filter((line) => known.some((name) => line.includes(`name=${name} `)));
      const before = await own();
      assertEquals(before.length, 2);
      for (const ifName of ["eth0", "net7"]) {
        const one = new Attachment(node, net, pod, { ifName });
        await one.add();
        assertEquals((await pod.ipJson("link", "show", ifName)).length, 1);
        await one.check();
        assertEquals(await own(), before);
        await one.del();
        assertEquals((await pod.ipJson("link")).map(({ ifname }) => ifname), ["lo"]);
        assertEquals(await own(), before);
      }
    },
  );
}

/** What differs between the reference's ADD and ours: in the container, on the host, in the result. */
export async function besideReference(
  node: Node,
  conf: Json,
  { prepare, allow = [] }: { prepare?: (container: Namespace) => Promise<void>; allow?: Allowed[] } = {},
): Promise<string[]> {
  const seen: { pod: Snapshot; host: Snapshot; result: string }[] = [];
  for (const by of ["ref", "cnibox"] as By[]) {
    const container = await node.container("beside");
    await prepare?.(container);
    const one = new Attachment(node, conf, container);
    const result = steady(JSON.stringify(await one.add(by)));
    await settled(node, container);
    seen.push({ pod: plain(await snapshot(container)), host: plain(await snapshot(node)), result });
    await one.del(by);
    await node.removeContainer(container);
  }
  const [ref, ours] = seen;
  if (!ref || !ours) throw new Error("not both");
  const results = ref.result === ours.result ? [] : [`- result: ${ref.result}`, `+ result: ${ours.result}`];
  return [
    ...difference(ref.pod, ours.pod, { allow }).map((line) => `container ${line}`),
    ...difference(ref.host, ours.host, { allow }).map((line) => `host ${line}`),
    ...results,
  ];
}

/** Drawn names and hardware addresses, and what the plugins say to avoid a wait. */
function steady(text: string): string {
  return text.replaceAll(/\b[0-9a-f]{2}(:[0-9a-f]{2}){5}\b/g, "MAC").replaceAll(/\bveth[0-9a-f]{8}\b/g, "vethX")
    .replaceAll(/ alias=cni:\S+/g, "").replaceAll(/ nodad\b/g, "").replaceAll(/(parent|link)=if\d+/g, "$1=ifN")
    .replaceAll(/ txqlen=\d+/g, "");
}

function plain(state: Snapshot): Snapshot {
  return Object.fromEntries(
    Object.entries(state).map(([section, lines]: [string, string[]]) => [section, lines.map(steady).sort()]),
  ) as unknown as Snapshot;
}
