/** Pains of host-local: ranges that are full of the dead, empty files, half an attachment, ranges that cannot be. */
import { assertMatch, assertStringIncludes } from "@std/assert";
import { type Json } from "../e2e/support/mod.ts";
import { bridgeNet, leases, painTest, play, said } from "./support.ts";

const net = (...subnets: string[]): Json =>
  bridgeNet({ ipam: { type: "host-local", ranges: subnets.map((subnet) => [{ subnet }]) } });

painTest(
  "P252, P697, k8s 57280: a range that is full of addresses from before a reboot gives them to the living",
  [],
  async ({ node, by }) => {
    const stdin = net("10.22.0.0/29");
    const add = (containerId: string) =>
      play({ node, by }, { type: "host-local", command: "ADD", netns: "/run/netns/x", containerId, stdin });
    for (let n = 2; n < 7; n++) await add(`dead${n}`);
    await node.sh("touch -d 2001-02-03 /var/lib/cni/networks/net1/10.*");
    return said(await add("living"));
  },
  "done",
);

painTest(
  "a range that is full of addresses of this boot stays full, and says how full",
  [],
  async ({ node, by }) => {
    const stdin = net("10.22.0.0/29");
    const add = (containerId: string) =>
      play({ node, by }, { type: "host-local", command: "ADD", netns: "/run/netns/x", containerId, stdin });
    for (let n = 2; n < 7; n++) await add(`c${n}`);
    const { json } = await add("last");
    return `${json.msg}: ${json.details ?? ""}`;
  },
  (seen) => {
    assertStringIncludes(seen, "no IP addresses available in range set: 10.22.0.1-10.22.0.6");
    assertMatch(seen, /5 of 5/);
  },
);

painTest(
  "P498: lease files that a crash left empty are free",
  [],
  async ({ node, by }) => {
    await node.sh("mkdir -p /var/lib/cni/networks/net1; cd /var/lib/cni/networks/net1; : >10.22.0.2; : >10.22.0.3");
    const stdin = net("10.22.0.0/29");
    const seen = [];
    for (let n = 0; n < 5; n++) {
      const request = { type: "host-local", command: "ADD", netns: "/run/netns/x", containerId: `c${n}`, stdin };
      seen.push(said(await play({ node, by }, request)));
    }
    return seen.filter((text) => text !== "done");
  },
  [],
);

painTest(
  "an ADD that finds one family exhausted keeps no address of the other",
  [],
  async ({ node, by }) => {
    const stdin = net("10.22.0.0/24", "fd00:22::/126");
    for (let n = 0; n < 2; n++) {
      const request = { type: "host-local", command: "ADD", netns: "/run/netns/x", containerId: `c${n}`, stdin };
      await play({ node, by }, request);
    }
    const before = (await leases(node)).length;
    const request = { type: "host-local", command: "ADD", netns: "/run/netns/x", containerId: "last", stdin };
    const failed = (await play({ node, by }, request)).code === 1;
    return { failed, kept: (await leases(node)).length - before };
  },
  { failed: true, kept: 0 },
);

painTest(
  "a lease of an old release, with the container's ID alone, is released",
  [],
  async ({ node, by }) => {
    await node.write("/var/lib/cni/networks/net1/10.22.0.2", "old");
    const request = { type: "host-local", command: "DEL", netns: null, containerId: "old", stdin: net("10.22.0.0/24") };
    return { said: said(await play({ node, by }, request)), leases: await leases(node) };
  },
  { said: "done", leases: [] },
);

painTest(
  "mistakes in a range are told with the value, and with the right one where there is one",
  [],
  async ({ node, by }) => {
    const ranges: Json[] = [
      { subnet: "10.22.0.5/24" },
      { subnet: "10.22.0.0/24", rangeStart: "10.23.0.1" },
      { subnet: "10.22.0.0/24", gateway: "10.2.0.300" },
    ];
    const seen = [];
    for (const range of ranges) {
      const stdin = bridgeNet({ ipam: { type: "host-local", ranges: [[range]] } });
      const request = { type: "host-local", command: "ADD", netns: "/run/netns/x", containerId: "a", stdin };
      const { json } = await play({ node, by }, request);
      seen.push(`${json?.msg ?? "done"}: ${json?.details ?? ""}`);
    }
    return seen;
  },
  ([bits, start, gateway]) => {
    for (const part of ["10.22.0.5/24", "10.22.0.0/24"]) assertStringIncludes(bits!, part);
    for (const part of ["10.23.0.1", "10.22.0.0/24"]) assertStringIncludes(start!, part);
    assertStringIncludes(gateway!, "10.2.0.300");
  },
);
