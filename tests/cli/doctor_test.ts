/** What `cnibox doctor` says of many things that have the same problem. */
import { assertEquals, assertStringIncludes } from "@std/assert";
import { attachments } from "../../lib/cli/doctor/attachments.ts";
import { daemons } from "../../lib/cli/doctor/dhcp.ts";
import { textOf } from "../../lib/cli/doctor/doctor.ts";
import { type Line, ofKind } from "../../lib/cli/doctor/finding.ts";
import { parseList } from "../../lib/cni/conflist.ts";
import type { Problem, ProblemCode, Survey, View } from "../../lib/cli/survey.ts";

function view(containerId: string, ...problems: [ProblemCode, fix: string][]): View {
  const told: Problem[] = problems.map(([code, fix]) => ({ code, text: `${code}!`, fix }));
  const place = { network: "pods", containerId, ifName: "eth0", netns: "", bridge: "" };
  return { ...place, state: "alive", addresses: [], leases: [], ports: [], problems: told };
}

const surveyOf = (views: View[], orphans: Survey["orphans"] = []): Survey => ({
  networks: [],
  views,
  leases: [],
  links: [],
  elsewhere: [],
  orphans,
  rules: {
    tables: { 4: new Map(), 6: new Map() },
    nft: { chains: [], rules: [], sets: [] },
    readable: true,
    saved: { 4: "", 6: "" },
  },
  pools: [],
  judgement: { judged: [], unrecorded: [], duplicates: [] },
  unseen: [],
  broken: [],
  blind: [],
  seesAttachments: true,
});

const found = (views: View[], orphans?: Survey["orphans"]) =>
  attachments({ seen: surveyOf(views, orphans), root: true });

const flushed = Array.from(
  { length: 53 },
  (_, at) =>
    view(
      `c${at}`,
      ["masquerade-missing", `cnibox restore --id c${at}`],
      ["port-rules-missing", `cnibox restore --id c${at}`],
    ),
);

Deno.test("doctor reports flushed rules of many containers once for each kind, with one command for all", () => {
  assertEquals(found(flushed).map(({ grade, text, fix, run, cases }) => [grade, text, fix, run, cases?.length]), [
    ["failure", "53 attachments lack masquerading", "cnibox restore --all", ["cnibox", "restore", "--all"], 53],
    [
      "failure",
      "53 attachments lack the rules of their published ports",
      "cnibox restore --all",
      ["cnibox", "restore", "--all"],
      53,
    ],
  ]);
});

Deno.test("doctor tells of a single container in full, and repairs no other", () => {
  const [line, ...others] = found([view("web", ["firewall-missing", "cnibox restore --id web"]), view("api")]);
  assertEquals(others, []);
  assertEquals(line?.text, "web (eth0) on pods: firewall-missing!");
  assertEquals([line?.fix, line?.run], ["cnibox restore --id web", ["cnibox", "restore", "--id", "web"]]);
});

Deno.test("doctor runs no command for what restore cannot fix, and leaves addresses to their own findings", () => {
  const gone = ["a", "b"].map((id) => view(id, ["netns-gone", "cnibox gc pods"], ["lease-missing", "x"]));
  const orphans = ["veth1", "veth2"].map((name) => (
    { what: "link" as const, name, network: "old", text: "lost", fix: "cnibox gc old" }
  ));
  assertEquals(found(gone, orphans).map(({ grade, text, fix, run }) => [grade, text, fix, run]), [
    ["warning", "2 attachments have namespaces that are gone", "cnibox gc pods", undefined],
    ["warning", "2 links of containers that nobody knows", "cnibox gc old", undefined],
  ]);
  assertEquals(found([view("web", ["not-examined", ""])]), []);
});

Deno.test("without one command for all cases doctor names the call that lists each with its own", () => {
  const line: Line = { area: "addresses", grade: "warning", text: "2 addresses are lost" };
  const cases = [{ text: "a", fix: "cnibox ipam free 10.0.0.2" }, { text: "b", fix: "cnibox ipam free 10.0.0.3" }];
  assertEquals(ofKind(line, cases), [{ ...line, fix: "cnibox doctor --verbose", cases }]);
  assertEquals(ofKind(line, []), []);
  assertEquals(ofKind(line, [{ text: "a" }]), [{ ...line, text: "a", cases: [{ text: "a" }] }]);
});

Deno.test("doctor prints a finding in three lines however many containers have it, and each of them with --verbose", () => {
  const lines = found(flushed).slice(0, 1);
  assertEquals(textOf(lines, { verbose: false }).split("\n"), [
    "failure attachments  53 attachments lack masquerading",
    "                     breaks: traffic that needs these rules",
    "                     fix: cnibox restore --all",
    "",
    "1 failure, 0 warnings, 0 ok; each case: cnibox doctor --verbose",
    "",
  ]);
  const verbose = textOf(lines, { verbose: true });
  assertStringIncludes(
    verbose,
    "\n                     - c52 (eth0) on pods: masquerade-missing!\n                       fix: cnibox restore --id c52\n",
  );
  assertEquals(verbose.split("\n").length, 6 + 2 * 53);
  // A fix is not repeated, and does not lead back to the same list.
  const gone = found(["a", "b"].map((id) => view(id, ["netns-gone", "cnibox gc pods"])));
  assertEquals(textOf(gone, { verbose: true }).match(/fix:/g)?.length, 1);
  const lost = found(["a", "b"].map((id) => view(id, ["interface-missing", `cnibox del pods --id ${id}`])));
  assertEquals(textOf(lost, { verbose: true }).match(/fix: .*/g), [
    "fix: cnibox del pods --id a",
    "fix: cnibox del pods --id b",
  ]);
});

Deno.test("doctor asks for a DHCP client where a network leases its addresses, and nowhere else", async () => {
  const list = (type: string) =>
    parseList(new TextEncoder().encode(JSON.stringify({
      cniVersion: "1.0.0",
      name: "lan",
      plugins: [{ type: "macvlan", ipam: { type } }],
    })));
  const answering = (client: string) => ({ argv }: { argv: readonly string[] }) => {
    const help = "BusyBox v1.35.0 multi-call binary.\n\nUsage: udhcpc\n\t-R\tRelease IP on exit\n";
    return Promise.resolve({
      code: 0,
      signal: null,
      stdout: "",
      stderr: argv.join(" ").startsWith(client) ? help : "",
    });
  };
  const clientLine = async (client: string) => {
    const [line] = await daemons({ lists: [list("dhcp")], host: answering(client) });
    return [line?.grade, line?.text, line?.fix];
  };
  assertEquals(await clientLine("busybox udhcpc"), ["ok", "leases are got by busybox udhcpc", undefined]);
  assertEquals(await clientLine("udhcpc"), ["ok", "leases are got by udhcpc", undefined]);
  assertEquals(await clientLine("dhclient"), [
    "failure",
    "network lan needs BusyBox's udhcpc, and it is missing",
    "install the package udhcpc, or busybox",
  ]);
  assertEquals(await daemons({ lists: [list("host-local")], host: answering("dhclient") }), []);
});
