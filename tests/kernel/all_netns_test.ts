import { assertEquals } from "@std/assert";
import { surveyNetns, unseenText } from "../../lib/kernel/all_netns.ts";
import type { Output, Run } from "../../lib/kernel/run.ts";
import { netnsAnswers } from "../fakes/netns_answers.ts";

const LSNS = "lsns -n -r -t net -o NS,PID";
const OWN_MOUNTS = "findmnt -n -r -t nsfs -o TARGET,SOURCE";
const INIT_MOUNTS = "findmnt -n -r -N 1 -t nsfs -o TARGET,SOURCE";
const NONE: Partial<Output> = { code: 1 };

/**
 * A host that answers each command, and each question to a namespace, with the next of its answers, the last one again
 * and again.
 */
function host(answers: Record<string, (string | Partial<Output>)[]>): Run {
  const next = (question: string): Output => {
    const left = answers[question];
    const answer = left && (left.length > 1 ? left.shift() : left[0]);
    if (answer === undefined) throw new Error(`unexpected: ${question}`);
    const output = typeof answer === "string" ? { stdout: answer } : answer;
    return { code: 0, signal: null, stdout: "", stderr: "", ...output };
  };
  return netnsAnswers(next, (path) => next(asked(path)));
}

const asked = (path: string) => `links of ${path}`;
const having = (...ips: string[]) =>
  JSON.stringify([{ ifname: "eth0", addr_info: ips.map((local) => ({ local })) }, {}, { ifname: "a", addr_info: [] }]);

Deno.test("addresses of every namespace are found, by process, by mount, and by PID 1's mounts", async () => {
  const { inUse, unseen } = await surveyNetns(host({
    [LSNS]: ["4026531840 1\n  4026532001   77 \n"],
    [OWN_MOUNTS]: ["/run/netns/a\\x20b nsfs[net:[4026532002]]\n/run/netns/with-process nsfs[net:[4026532001]]\n"],
    [INIT_MOUNTS]: ["/run/netns/c nsfs[net:[4026532003]]\n/run/uts/x nsfs[uts:[4026532004]]\n"],
    [asked("/proc/1/ns/net")]: [having("192.0.2.1", "::1")],
    [asked("/proc/77/ns/net")]: [having("10.0.0.2")],
    [asked("/run/netns/a b")]: [having("10.0.0.3", "fd00::3")],
    [asked("/proc/1/root/run/netns/c")]: [having("10.0.0.4")],
  }));
  assertEquals(unseen, []);
  assertEquals(Object.fromEntries(inUse), {
    "192.0.2.1": "/proc/1/ns/net",
    "::1": "/proc/1/ns/net",
    "10.0.0.2": "/proc/77/ns/net",
    "10.0.0.3": "/run/netns/a b",
    "fd00::3": "/run/netns/a b",
    "10.0.0.4": "/proc/1/root/run/netns/c",
  });
});

Deno.test("a namespace that ends meanwhile has no addresses", async () => {
  const { inUse, unseen } = await surveyNetns(host({
    [LSNS]: ["4026531840 1\n4026532001 77\n", "4026531840 1\n"],
    [OWN_MOUNTS]: [NONE],
    [INIT_MOUNTS]: [NONE],
    [asked("/proc/1/ns/net")]: [having("192.0.2.1")],
    [asked("/proc/77/ns/net")]: [{
      code: 1,
      stderr: "nsenter: cannot open /proc/77/ns/net: No such file or directory",
    }],
  }));
  assertEquals([[...inUse.keys()], unseen], [["192.0.2.1"], []]);
});

Deno.test("what cannot be asked is named with the reason, and what could be seen is kept", async () => {
  const works = {
    [LSNS]: ["4026531840 1\n4026532001 77\n"],
    [OWN_MOUNTS]: ["/run/netns/a nsfs[net:[4026532002]]\n"],
    [INIT_MOUNTS]: [NONE],
    [asked("/proc/1/ns/net")]: [having("192.0.2.1")],
    [asked("/proc/77/ns/net")]: [having("10.0.0.2")],
    [asked("/run/netns/a")]: [having("10.0.0.3")],
  };
  const all = ["10.0.0.2", "10.0.0.3", "192.0.2.1"];
  const denied = { code: 1, stderr: "Permission denied" };
  const expected: Record<string, [found: string[], unseen: string]> = {
    [LSNS]: [["10.0.0.3"], "the namespaces of processes"],
    [OWN_MOUNTS]: [["10.0.0.2", "192.0.2.1"], "the mounted namespaces"],
    [INIT_MOUNTS]: [all, "the namespaces that PID 1 has mounted"],
    [asked("/proc/1/ns/net")]: [["10.0.0.2", "10.0.0.3"], "/proc/1/ns/net"],
    [asked("/proc/77/ns/net")]: [["10.0.0.3", "192.0.2.1"], "/proc/77/ns/net"],
    [asked("/run/netns/a")]: [["10.0.0.2", "192.0.2.1"], "/run/netns/a"],
  };
  assertEquals((await surveyNetns(host(works))).unseen, []);
  for (const command of Object.keys(works)) {
    const { inUse, unseen } = await surveyNetns(host({ ...works, [command]: [denied] }));
    const [found, path] = expected[command]!;
    assertEquals([...inUse.keys()].sort(), found, command);
    assertEquals(unseenText(unseen), `${path} could not be looked at: Permission denied`, command);
  }
});

Deno.test("a listing that a process's end spoiled is made again, a few times", async () => {
  const works = {
    [OWN_MOUNTS]: [NONE],
    [INIT_MOUNTS]: [NONE],
    [asked("/proc/1/ns/net")]: [having("192.0.2.1")],
  };
  const spoiled: Partial<Output> = { code: 1 };
  const { inUse, unseen } = await surveyNetns(host({ ...works, [LSNS]: [spoiled, spoiled, "4026531840 1\n"] }));
  assertEquals([[...inUse.keys()], unseen], [["192.0.2.1"], []]);
  const never = await surveyNetns(host({ ...works, [LSNS]: [spoiled] }));
  assertEquals(never.unseen.map(({ path }) => path), ["the namespaces of processes"]);
});

Deno.test("a namespace whose process ended is asked by another way", async () => {
  const { inUse, unseen } = await surveyNetns(host({
    [LSNS]: ["4026531840 1\n4026532001 77\n", "4026531840 1\n"],
    [OWN_MOUNTS]: ["/run/netns/a nsfs[net:[4026532001]]\n"],
    [INIT_MOUNTS]: [NONE],
    [asked("/proc/1/ns/net")]: [having("192.0.2.1")],
    [asked("/proc/77/ns/net")]: [{
      code: 1,
      stderr: "nsenter: cannot open /proc/77/ns/net: No such file or directory",
    }],
    [asked("/run/netns/a")]: [having("10.0.0.2")],
  }));
  assertEquals(Object.fromEntries(inUse), { "192.0.2.1": "/proc/1/ns/net", "10.0.0.2": "/run/netns/a" });
  assertEquals(unseen, []);
});

Deno.test("links are kept by namespace, those of further paths as well, many by a few processes", async () => {
  const paths = Array.from({ length: 300 }, (_, index) => `/run/netns/n${index}`);
  const mounts = paths.map((path, index) => `${path} nsfs[net:[${5_000_000 + index}]]\n`).join("");
  const answers = Object.fromEntries(paths.map((path, index) => [asked(path), [having(`10.0.${index}.1`)]]));
  const works = host({
    [LSNS]: [""],
    [OWN_MOUNTS]: [mounts],
    [INIT_MOUNTS]: [NONE],
    ...answers,
    [asked("/proc/77/root/netns")]: [having("10.1.0.1")],
  });
  const tools: string[] = [];
  const counted: Run = (command) => {
    tools.push(command.argv[0] ?? "");
    return works(command);
  };
  const { links, inUse, unseen } = await surveyNetns(counted, new Map([["77", "/proc/77/root/netns"]]));
  assertEquals([links.size, inUse.size, unseen], [301, 301, []]);
  assertEquals(links.get("77")?.map(({ ifname }) => ifname), ["eth0", "a"]);
  assertEquals(inUse.get("10.0.299.1"), "/run/netns/n299");
  assertEquals(tools.filter((tool) => tool === "sh").length, 10);
});

Deno.test("what ip warns of beside its answer does not spoil it; an answer that is cut off counts as none", async () => {
  const works = {
    [LSNS]: [""],
    [OWN_MOUNTS]: ["/run/netns/a nsfs[net:[4026532002]]\n/run/netns/b nsfs[net:[4026532003]]\n"],
    [INIT_MOUNTS]: [NONE],
    [asked("/run/netns/a")]: [`Dump was interrupted and may be inconsistent.\n${having("10.0.0.2")}`],
    [asked("/run/netns/b")]: [having("10.0.0.3").slice(0, 20)],
  };
  const { inUse, unseen } = await surveyNetns(host(works));
  assertEquals([[...inUse.keys()], unseen.map(({ path }) => path)], [["10.0.0.2"], ["/run/netns/b"]]);
});
