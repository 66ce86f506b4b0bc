/** What the dhcp plugin decides by itself; what it asks its daemon for is in tests/e2e/dhcp_test.ts. */
import { assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { CniError, code } from "../../lib/cni/error.ts";
import type { ContainerCall, Verb } from "../../lib/cni/plugin.ts";
import type { JsonObject, Result } from "../../lib/cni/types.ts";
import { leaseFolder, type LeaseRecord, writeRecord } from "../../plugins/dhcp/client.ts";
import { type CmdArgs, RpcError, serve } from "../../plugins/dhcp/rpc.ts";
import { listenUnix } from "../../lib/kernel/unix_socket.ts";
import { plugin } from "../../plugins/dhcp/mod.ts";
import { fakeCall, fakeNetworkCall } from "../fakes/call.ts";

interface Scene {
  readonly folder: string;
  /** Calls that reached the daemon: `DHCP.Allocate ctr1 eth0`. */
  readonly asked: string[];
  readonly args: CmdArgs[];
  call(
    ipam?: JsonObject,
    changes?: Partial<ContainerCall> & { readonly prevResult?: unknown },
  ): ReturnType<typeof fakeCall>;
}

const RESULT: Result = { ips: [{ address: "10.0.0.5/24", gateway: "10.0.0.1" }], routes: [] };

/** A daemon that answers this, on a socket of its own; none for `undefined`. */
async function scene(
  answer: (() => Promise<Result>) | undefined,
  work: (scene: Scene) => Promise<void>,
): Promise<void> {
  const folder = Deno.makeTempDirSync();
  const asked: string[] = [];
  const args: CmdArgs[] = [];
  const note = (method: string) => (cmd: CmdArgs) => {
    asked.push(`${method} ${cmd.ContainerID} ${cmd.IfName}`);
    args.push(cmd);
    return method === "DHCP.Allocate" && answer ? answer() : Promise.resolve(undefined);
  };
  const acceptor = answer && await listenUnix(`${folder}/dhcp.sock`);
  const served = acceptor && serve(acceptor, {
    "DHCP.Allocate": note("DHCP.Allocate"),
    "DHCP.Release": note("DHCP.Release"),
  }, () => {});
  const call: Scene["call"] = (ipam = {}, { prevResult, ...changes } = {}) =>
    fakeCall({
      type: "bridge",
      ipam: { type: "dhcp", daemonSocketPath: `${folder}/dhcp.sock`, ...ipam },
      ...(prevResult !== undefined && { prevResult }),
    }, changes);
  try {
    await work({ folder, asked, args, call });
  } finally {
    acceptor?.close();
    await served;
    Deno.removeSync(folder, { recursive: true });
  }
}

const answers = (result: Result) => () => Promise.resolve(result);

function record(folder: string, changes: Partial<LeaseRecord> = {}): void {
  const whole: LeaseRecord = {
    containerId: "ctr1",
    network: "net1",
    ifName: "eth0",
    netns: "/run/netns/pod",
    netnsIdentity: "",
    bootId: "",
    ifindex: 2,
    mac: "",
    options: { send: new Map(), ask: [] },
    priority: 0,
    broadcast: false,
    timeoutMs: 0,
    address: "10.0.0.5/24",
    suspended: false,
    ...changes,
  };
  const path = leaseFolder(`${folder}/dhcp`, whole);
  Deno.mkdirSync(path, { recursive: true });
  writeRecord(path, whole);
}

async function refusal(work: Promise<unknown>): Promise<CniError> {
  return await assertRejects(() => work, CniError);
}

Deno.test("dhcp ADD asks the daemon with the call's own words, and releases the lease when the call fails", async () => {
  await scene(answers(RESULT), async ({ asked, args, call }) => {
    const add = call({}, { args: "K=V", netns: "netns/x", env: { CNI_PATH: "/a:/b", CNI_NETNS_OVERRIDE: "1" } });
    assertEquals(await plugin.add(add), RESULT);
    const { StdinData, ...rest } = args[0]!;
    assertEquals(rest, {
      ContainerID: "ctr1",
      Netns: `${Deno.cwd()}/netns/x`,
      IfName: "eth0",
      Args: "K=V",
      Path: "/a:/b",
      NetnsOverride: "1",
    });
    assertEquals(StdinData, add.stdin);
    for (const undo of add.undos) await undo();
    assertEquals(asked, ["DHCP.Allocate ctr1 eth0", "DHCP.Release ctr1 eth0"]);
  });
});

Deno.test("dhcp ADD says what is wrong with a configuration before anybody is asked", async () => {
  await scene(answers(RESULT), async ({ asked, call }) => {
    const cases: readonly (readonly [ipam: JsonObject, number: number, msg: string])[] = [
      [{ request: [{ option: "x" }] }, code.config, 'error calling DHCP.Allocate: Can not parse option "x"'],
      [
        { provide: [{ option: "12", value: 5 }] },
        code.internal,
        "error parsing netconf: json: cannot unmarshal number",
      ],
      [{ priority: "1" }, code.internal, "error parsing netconf: json: cannot unmarshal string"],
    ];
    for (const [ipam, number, msg] of cases) {
      const error = await refusal(plugin.add(call(ipam)));
      assertEquals(error.code, number);
      assertStringIncludes(error.msg, msg);
    }
    const error = await refusal(plugin.add(fakeCall({ type: "bridge" })));
    assertEquals([error.code, error.msg], [code.config, "error parsing netconf: ipam is missing"]);
    assertEquals(asked, []);
  });
});

Deno.test("dhcp ADD hands on what the daemon says", async () => {
  const answer = () =>
    Promise.reject(new RpcError("no more tries", "eth0 (02:00:00:00:00:01): no DHCP server answered"));
  await scene(answer, async ({ asked, call }) => {
    const add = call();
    const error = await refusal(plugin.add(add));
    assertEquals([error.code, error.msg], [code.internal, "error calling DHCP.Allocate: no more tries"]);
    assertEquals(error.details, "eth0 (02:00:00:00:00:01): no DHCP server answered");
    for (const undo of add.undos) await undo();
    assertEquals(asked, ["DHCP.Allocate ctr1 eth0"], "a second ADD may be asking: nothing is released");
  });
});

Deno.test("dhcp without a daemon: every verb says how to start it, DEL succeeds", async () => {
  await scene(undefined, async ({ folder, call }) => {
    const socket = `${folder}/dhcp.sock`;
    const msg = `error dialing DHCP daemon: dial unix ${socket}: connect: no such file or directory`;
    const add = call();
    const error = await refusal(plugin.add(add));
    assertEquals([error.code, error.msg], [code.internal, msg]);
    assertStringIncludes(error.details, `/opt/cni/bin/dhcp daemon -socketpath ${socket}`);
    for (const undo of add.undos) await undo();
    assertEquals((await refusal(plugin.check(call()))).msg, msg);
    const status = await refusal(plugin.status(fakeNetworkCall(call().config, { verb: "STATUS" as Verb })));
    assertEquals([status.code, status.msg], [code.notAvailable, msg]);
    const del = call();
    await plugin.del(del);
    assertEquals(del.warnings, [
      `dial unix ${socket}: connect: no such file or directory; it left no lease of this container`,
    ]);
    record(folder);
    await plugin.del(call());
    assertEquals([...Deno.readDirSync(`${folder}/dhcp`)], []);
  });
});

Deno.test("dhcp DEL reads no more of a configuration than it needs", async () => {
  await scene(answers(RESULT), async ({ asked, call }) => {
    await plugin.del(call({ request: [{ option: "x" }], provide: 5 }));
    assertEquals(asked, ["DHCP.Release ctr1 eth0"]);
  });
});

Deno.test("dhcp CHECK compares the lease with prevResult", async () => {
  await scene(answers(RESULT), async ({ asked, call }) => {
    const previous = (...addresses: string[]) => ({
      cniVersion: "1.1.0",
      ips: addresses.map((address) => ({ address })),
    });
    await plugin.check(call());
    await plugin.check(call({}, { prevResult: previous("fd00::1/64", "10.0.0.5/24") }));
    const error = await refusal(plugin.check(call({}, { prevResult: previous("10.0.0.6/24") })));
    assertEquals(error.msg, "dhcp: the server leases 10.0.0.5/24 to eth0, but prevResult has 10.0.0.6/24");
    assertEquals(asked.length, 3);
  });
});

Deno.test("dhcp CHECK does not wait for a server when the lease has run out", async () => {
  await scene(answers(RESULT), async ({ folder, asked, call }) => {
    record(folder, { suspended: true });
    const words = "dhcp: the lease of 10.0.0.5/24 ran out and no server renewed it";
    assertEquals((await refusal(plugin.check(call()))).msg, words);
    record(folder, { suspended: false });
    const lease = `${leaseFolder(`${folder}/dhcp`, { containerId: "ctr1", network: "net1", ifName: "eth0" })}/lease`;
    const event = (uptime: number) => `event=bound\0ip=10.0.0.5\0subnet=255.255.255.0\0lease=60\0uptime=${uptime} 1\n`;
    Deno.writeTextFileSync(lease, event(0));
    if (Deno.osUptime() > 60) assertEquals((await refusal(plugin.check(call()))).msg, words);
    assertEquals(asked, []);
    Deno.writeTextFileSync(lease, event(Deno.osUptime()));
    await plugin.check(call());
    assertEquals(asked.length, 1);
  });
});

Deno.test("dhcp GC asks for the release of what is not valid, in its own network", async () => {
  await scene(answers(RESULT), async ({ folder, asked, call }) => {
    record(folder, { containerId: "old" });
    record(folder, { containerId: "old", ifName: "net1" });
    record(folder, { containerId: "other", network: "net2" });
    record(folder, { containerId: "asking", address: "" });
    record(folder);
    const gc = (valid?: readonly { readonly containerID: string; readonly ifname: string }[]) =>
      plugin.gc(fakeNetworkCall(call().config, { valid }));
    await gc(undefined);
    assertEquals(asked, []);
    await gc([{ containerID: "ctr1", ifname: "eth0" }, { containerID: "old", ifname: "net1" }]);
    assertEquals(asked, ["DHCP.Release old eth0"]);
    await gc([]);
    assertEquals(asked.slice(1).sort(), ["DHCP.Release ctr1 eth0", "DHCP.Release old eth0", "DHCP.Release old net1"]);
  });
});

Deno.test("dhcp tells callers which address an attachment holds", async () => {
  await scene(answers(RESULT), async ({ folder, asked, call }) => {
    assertEquals(await plugin.held?.(call()), []);
    record(folder);
    assertEquals(await plugin.held?.(call()), ["10.0.0.5/24"]);
    assertEquals(await plugin.held?.(call({}, { ifName: "eth1" })), []);
    assertEquals(asked, []);
  });
});
