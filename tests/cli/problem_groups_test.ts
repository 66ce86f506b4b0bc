import { assertEquals } from "@std/assert";
import { fixOfAll, groupOrphans, groupProblems } from "../../lib/cli/problem_groups.ts";
import type { ProblemCode, View } from "../../lib/cli/survey.ts";

function view(containerId: string, ...problems: [ProblemCode, fix: string][]): View {
  return {
    network: "pods",
    containerId,
    ifName: "eth0",
    netns: "",
    state: "alive",
    bridge: "",
    addresses: [],
    leases: [],
    ports: [],
    problems: problems.map(([code, fix]) => ({ code, text: `${containerId} ${code}`, fix })),
  };
}

const told = (views: View[]) => groupProblems(views).map(({ text, fix }) => [text, fix]);

Deno.test("problems of many attachments are told once each, with the command that repairs all of them", () => {
  const flushed = Array.from(
    { length: 53 },
    (_, at) => view(`c${at}`, ["masquerade-missing", `cnibox restore --id c${at}`]),
  );
  const gone = view("old", ["netns-gone", "cnibox gc pods"]);
  assertEquals(told([...flushed, gone]), [
    ["53 attachments lack masquerading", "cnibox restore --all"],
    ["1 attachment has a namespace that is gone", "cnibox gc pods"],
  ]);
});

Deno.test("what no one command repairs leads to the list", () => {
  const del = (id: string) => `cnibox del pods --id ${id} --ifname eth0, then add it again`;
  assertEquals(told([view("a", ["address-missing", del("a")]), view("b", ["address-missing", del("b")])]), [
    ["2 attachments lack an address on their interface", "cnibox show --problems"],
  ]);
  assertEquals(told([view("a", ["netns-gone", "cnibox gc front"]), view("b", ["netns-gone", "cnibox gc back"])]), [
    ["2 attachments have namespaces that are gone", "cnibox gc front,back"],
  ]);
  assertEquals(told([view("a")]), []);
});

Deno.test("one command repairs several networks where there is one", () => {
  const fixOf = (...fixes: string[]) => fixOfAll(fixes, "list");
  assertEquals(fixOf("cnibox ipam repair front", "cnibox ipam repair back"), "cnibox ipam repair --all");
  assertEquals(fixOf("cnibox ipam repair front", "", "cnibox ipam repair front"), "cnibox ipam repair front");
  assertEquals(fixOf("cnibox gc front", "cnibox ipam repair back"), "list");
  assertEquals(fixOf("cnibox gc front", "cnibox gc old --conf FILE, where FILE is what configured old"), "list");
  assertEquals(fixOf("", ""), "");
});

Deno.test("links and rules that nobody knows are told once for each command that removes them", () => {
  const orphan = (what: "link" | "chain", name: string, fix: string) => ({
    what,
    name,
    network: "pods",
    text: "lost",
    fix,
  });
  const dead = ["a", "b", "c"].map((name) => orphan("link", `veth${name}`, "cnibox gc pods"));
  const alive = ["x", "y"].map((name) => orphan("link", `veth${name}`, `cnibox del pods --id ${name} --ifname eth0`));
  const chain = orphan("chain", "one", "cnibox gc pods");
  assertEquals(groupOrphans([...dead, ...alive, chain]).map(({ text, fix }) => [text, fix]), [
    ["3 links of containers that nobody knows", "cnibox gc pods"],
    ["2 links of containers that nobody knows, and whose namespaces live", "cnibox show --problems"],
    ["one: lost", "cnibox gc pods"],
  ]);
});

Deno.test("an attachment with two problems of a kind counts once", () => {
  const [group] = groupProblems([view("a", ["address-missing", "x"], ["address-missing", "x"])]);
  assertEquals([group?.text, group?.fix], ["1 attachment lacks an address on its interface", "x"]);
});
