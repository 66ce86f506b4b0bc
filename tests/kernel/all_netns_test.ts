import { assertEquals, assertRejects } from "@std/assert";
import { addressesInUse } from "../../lib/kernel/all_netns.ts";
import { CommandError, type Output, type Run } from "../../lib/kernel/run.ts";

const LSNS = "lsns -n -r -t net -o NS,PID";
const OWN_MOUNTS = "findmnt -n -r -t nsfs -o TARGET,SOURCE";
const INIT_MOUNTS = "findmnt -n -r -N 1 -t nsfs -o TARGET,SOURCE";
const NONE: Partial<Output> = { code: 1 };

/** A host that answers each command with the next of its answers, the last one again and again. */
function host(answers: Record<string, (string | Partial<Output>)[]>): Run {
  return ({ argv }) => {
    const left = answers[argv.join(" ")];
    const answer = left && (left.length > 1 ? left.shift() : left[0]);
    if (answer === undefined) throw new Error(`unexpected: ${argv.join(" ")}`);
    const output = typeof answer === "string" ? { stdout: answer } : answer;
    return Promise.resolve({ code: 0, signal: null, stdout: "", stderr: "", ...output });
  };
}

const asked = (path: string) => `nsenter --net=${path} -- ip -j address show`;
const having = (...ips: string[]) =>
  JSON.stringify([{ addr_info: ips.map((local) => ({ local })) }, {}, { addr_info: [] }]);

Deno.test("addresses of every namespace are found, by process, by mount, and by PID 1's mounts", async () => {
  const inUse = await addressesInUse(host({
    [LSNS]: ["4026531840 1\n  4026532001   77 \n"],
    [OWN_MOUNTS]: ["/run/netns/a\\x20b nsfs[net:[4026532002]]\n/run/netns/with-process nsfs[net:[4026532001]]\n"],
    [INIT_MOUNTS]: ["/run/netns/c nsfs[net:[4026532003]]\n/run/uts/x nsfs[uts:[4026532004]]\n"],
    [asked("/proc/1/ns/net")]: [having("192.0.2.1", "::1")],
    [asked("/proc/77/ns/net")]: [having("10.0.0.2")],
    [asked("/run/netns/a b")]: [having("10.0.0.3", "fd00::3")],
    [asked("/proc/1/root/run/netns/c")]: [having("10.0.0.4")],
  }));
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
  const inUse = await addressesInUse(host({
    [LSNS]: ["4026531840 1\n4026532001 77\n", "4026531840 1\n"],
    [OWN_MOUNTS]: [NONE],
    [INIT_MOUNTS]: [NONE],
    [asked("/proc/1/ns/net")]: [having("192.0.2.1")],
    [asked("/proc/77/ns/net")]: [{
      code: 1,
      stderr: "nsenter: cannot open /proc/77/ns/net: No such file or directory",
    }],
  }));
  assertEquals([...inUse.keys()], ["192.0.2.1"]);
});

Deno.test("what cannot be asked is an error, not an absence", async () => {
  const works = {
    [LSNS]: ["4026531840 1\n4026532001 77\n"],
    [OWN_MOUNTS]: [NONE],
    [INIT_MOUNTS]: [NONE],
    [asked("/proc/1/ns/net")]: [having("192.0.2.1")],
    [asked("/proc/77/ns/net")]: [having("10.0.0.2")],
  };
  await addressesInUse(host(works));
  const denied = { code: 1, stderr: "Permission denied" };
  for (const command of Object.keys(works)) {
    await assertRejects(
      () => addressesInUse(host({ ...works, [command]: [denied] })),
      Error,
      "Permission denied",
      command,
    );
  }
});

Deno.test("a listing that a process's end spoiled is made again, a few times", async () => {
  const works = {
    [OWN_MOUNTS]: [NONE],
    [INIT_MOUNTS]: [NONE],
    [asked("/proc/1/ns/net")]: [having("192.0.2.1")],
  };
  const spoiled: Partial<Output> = { code: 1 };
  const inUse = await addressesInUse(host({ ...works, [LSNS]: [spoiled, spoiled, "4026531840 1\n"] }));
  assertEquals([...inUse.keys()], ["192.0.2.1"]);
  await assertRejects(() => addressesInUse(host({ ...works, [LSNS]: [spoiled] })), CommandError);
});

Deno.test("a namespace whose process ended is asked by another way", async () => {
  const inUse = await addressesInUse(host({
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
});
