import { collectVeths } from "../../lib/link/link_upkeep.ts";
import { assert, assertEquals, assertNotEquals, assertRejects } from "@std/assert";
import {
  deleteHostVeth,
  hostEnd,
  hostEndNames,
  podIndex,
  portAlias,
  undoHostEnd,
  withFreeName,
} from "../../lib/link/host_end.ts";
import { vethInto } from "../../lib/kernel/ip.ts";
import { apply, step, StepError } from "../../lib/kernel/plan.ts";
import type { Run } from "../../lib/kernel/run.ts";
import { fakeCall } from "../fakes/call.ts";
import { noted } from "../fakes/kernel.ts";

const after = [step("host", "ip", "neigh del 10.22.0.5 dev cni0")];
const ends: [what: string, stderr: string, fails: boolean][] = [
  ["that it could not delete", "RTNETLINK answers: Operation not permitted\nCommand failed -:1\n", true],
  ["that is not there", 'Cannot find device "veth1"\nCommand failed -:1\n', false],
  ["that it deleted, before a later line failed", "RTNETLINK answers: Invalid argument\nCommand failed -:2\n", false],
  ["of which it says nothing", "something went wrong\n", true],
  ["that it was killed over", "", true],
];

for (const [what, stderr, fails] of ends) {
  Deno.test(`a tool's failure about a link ${what} is ${fails ? "one" : "none"}`, async () => {
    const host: Run = () => Promise.resolve({ code: 1, signal: null, stdout: "", stderr });
    const work = () => deleteHostVeth(fakeCall({}, { verb: "DEL", host }), "veth1", after);
    if (fails) await assertRejects(work);
    else await work();
  });
}

Deno.test("GC does not take a failed listing for a node without links", async () => {
  const host: Run = () => Promise.resolve({ code: 1, signal: null, stdout: "", stderr: "something went wrong\n" });
  await assertRejects(
    () => collectVeths(fakeCall({}, { verb: "GC", host }), "net1", []),
    Error,
    "something went wrong",
  );
});

const owner = { network: "net1", containerId: "ctr1", ifName: "eth0" };
const alias = portAlias(owner);
const [name = "", second = ""] = hostEndNames(owner);
const mac = hostEnd(owner).mac;
const veth = { ifname: name, linkinfo: { info_kind: "veth" }, address: "02:00:00:00:00:01" };

const links: [what: string, link: Record<string, unknown>, own: boolean][] = [
  ["its alias", { ...veth, ifalias: alias }, true],
  ["another's alias", { ...veth, ifalias: `${alias}1` }, false],
  ["another's alias and its MAC", { ...veth, address: mac, ifalias: "cni:net1:ctr2:eth0" }, false],
  ["its MAC and no alias", { ...veth, address: mac }, true],
  ["another MAC and no alias", veth, false],
  ["its MAC, but another kind", { ...veth, address: mac, linkinfo: { info_kind: "dummy" } }, false],
  ["its MAC, but no kind at all", { ifname: name, address: mac }, false],
];

for (const [what, link, own] of links) {
  Deno.test(`a link with the computed name and ${what} is ${own ? "" : "not "}taken back`, async () => {
    const { call, log } = noted({}, { answers: { [`addr show dev ${name}`]: [link] } });
    await undoHostEnd(name, owner).job?.(call);
    assertEquals(log.filter((line) => line.includes("link del")).length, own ? 1 : 0);
  });
}

Deno.test("a link is made by the next name where somebody else has the first, and by the first where it is the own one", async () => {
  for (const taken of [true, false]) {
    const { call, log } = noted({}, {
      answers: { [`addr show dev ${name}`]: [{ ...veth, ifalias: taken ? "cni:net1:other:eth0" : alias }] },
      fails: { line: new RegExp(`^link add name ${name} `), stderr: "RTNETLINK answers: File exists" },
    });
    const end = hostEnd(owner);
    const make = () => apply([[step("host", "ip", `link add name ${end.name} type veth`, { failing: "no" })]], call);
    if (taken) await withFreeName(call, { owner, end }, make);
    else await assertRejects(() => withFreeName(call, { owner, end }, make), StepError, "no: file exists");
    assertEquals(end, taken ? hostEnd(owner, 1) : hostEnd(owner));
    assertEquals(log.at(-1)?.includes(second), taken);
  }
});

Deno.test("GC takes links of its network without alias by their MAC, unless a valid attachment may have made them", async () => {
  const other = { ...owner, containerId: "ctr2" };
  const listed = [
    { ...veth, address: mac },
    { ...veth, ifname: hostEnd(other).name, address: hostEnd(other).mac },
    { ...veth, ifname: hostEnd(other, 2).name, address: hostEnd(other, 2).mac },
    { ...veth, ifname: "veth0", address: hostEnd({ ...owner, network: "net2" }).mac },
    { ...veth, ifname: "veth1", ifalias: "cni:net1:gone:eth0" },
    { ...veth, ifname: "veth2", ifalias: "cni:net11:gone:eth0" },
    { ...veth, ifname: "veth3", ifalias: "somebody's" },
    {},
  ];
  const gone: string[] = [];
  const host: Run = ({ argv }) => {
    const shows = argv.includes("show");
    if (!shows) gone.push(argv.at(-1) ?? "");
    return Promise.resolve({ code: 0, signal: null, stdout: shows ? JSON.stringify(listed) : "", stderr: "" });
  };
  await collectVeths(fakeCall({}, { verb: "GC", host }), "net1", [{ containerID: "ctr2", ifname: "eth0" }]);
  assertEquals(gone, [name, "veth1"]);
});

Deno.test("an alias that the kernel would cut ends in a hash of the whole", () => {
  const long = (end: string) => portAlias({ network: "n", containerId: "c".repeat(250) + end, ifName: "eth0" });
  assertEquals(portAlias(owner), "cni:net1:ctr1:eth0");
  assertEquals([long("1").length, long("2").length], [255, 255]);
  assertNotEquals(long("1"), long("2"));
  const wide = portAlias({ network: "n", containerId: "c".repeat(234), ifName: "ääääääää" });
  assert(new TextEncoder().encode(wide).length <= 255, wide);
});

Deno.test("the container's end is given an index that no link has, the same one each time, where its name is the host's too", () => {
  const owner = { network: "pods", containerId: "c1", ifName: "eth0" };
  const index = podIndex(hostEnd(owner));
  assertEquals(index, podIndex(hostEnd(owner)));
  assertNotEquals(index, podIndex(hostEnd({ ...owner, containerId: "c2" })));
  for (const name of ["veth00000000", "vethffffffff", hostEnd(owner).name]) {
    const index = podIndex({ name });
    assert(Number.isInteger(index) && index >= 2 ** 30 && index < 2 ** 31, `${name}: ${index}`);
  }
  const pair = { name: "veth00000001", peer: "eth0", netns: "/run/netns/a", mtu: 1400 };
  assertEquals(
    vethInto(pair, { up: true, index: 2 ** 30 }),
    "link add index 1073741824 name eth0 mtu 1400 up netns /run/netns/a type veth peer name veth00000001 mtu 1400",
  );
  assertEquals(
    vethInto(pair, { up: false, index: 0 }),
    "link add name eth0 mtu 1400 netns /run/netns/a type veth peer name veth00000001 mtu 1400",
  );
});
