import { assertEquals, assertThrows } from "@std/assert";
import { sameAttachment } from "../../lib/net/name.ts";
import {
  leaseFolder,
  leaseFolders,
  type LeaseRecord,
  prepareState,
  readLease,
  readLeaseEvent,
  readRecord,
  stateFolder,
  writeRecord,
} from "../../plugins/dhcp/client.ts";

const RECORD: LeaseRecord = {
  containerId: "c",
  network: "n",
  ifName: "eth0",
  netns: "/run/netns/c",
  netnsIdentity: "4:4026531840",
  bootId: "b",
  ifindex: 2,
  mac: "02:00:00:00:00:01",
  options: { send: new Map([[12, new TextEncoder().encode("web")], [224, Uint8Array.from([0, 255])]]), ask: [121, 3] },
  priority: 7,
  broadcast: true,
  timeoutMs: 1000,
  address: "10.0.0.1/24",
  suspended: false,
};

function temporary(): { readonly path: string } & Disposable {
  const path = Deno.makeTempDirSync();
  return { path, [Symbol.dispose]: () => Deno.removeSync(path, { recursive: true }) };
}

Deno.test("dhcp state lies beside the socket, a folder for each client identifier", () => {
  assertEquals(stateFolder("/run/cni/dhcp.sock"), "/run/cni/dhcp");
  assertEquals(stateFolder("/run/other"), "/run/other.d");
  const folder = leaseFolder("/s", RECORD);
  assertEquals(/^\/s\/[0-9a-f]{32}$/.test(folder), true);
  assertEquals(folder === leaseFolder("/s", { ...RECORD, ifName: "eth1" }), false);
  const long = { containerId: "c".repeat(260), network: "n", ifName: "eth0" };
  assertEquals(
    leaseFolder("/s", long),
    leaseFolder("/s", { ...long, ifName: "eth1" }),
    "servers cannot tell them apart",
  );
  assertEquals(sameAttachment(long, { ...long, ifName: "eth1" }), false);
});

Deno.test("dhcp record is read as it was written, or not at all", () => {
  using folder = temporary();
  assertEquals(readRecord(folder.path), undefined);
  writeRecord(folder.path, RECORD);
  assertEquals(readRecord(folder.path), RECORD);
  writeRecord(folder.path, { ...RECORD, suspended: true });
  assertEquals(readRecord(folder.path)?.suspended, true);
  const text = Deno.readTextFileSync(`${folder.path}/record.json`);
  assertEquals((Deno.statSync(`${folder.path}/record.json`).mode ?? 0) & 0o777, 0o600);
  for (
    const broken of [
      "",
      "{}",
      "null",
      text.slice(0, -10),
      text.replace('"version":1', '"version":2'),
      text.replace('"mac"', '"mic"'),
    ]
  ) {
    Deno.writeTextFileSync(`${folder.path}/record.json`, broken);
    assertEquals(readRecord(folder.path), undefined, broken);
  }
});

Deno.test("dhcp lease files that are not whole are none", () => {
  using folder = temporary();
  assertEquals(readLease(folder.path), undefined);
  const whole = "event=bound\0ip=10.0.0.1\0subnet=255.255.255.0\0lease=60\0uptime=12.5 3\n";
  Deno.writeTextFileSync(`${folder.path}/lease`, whole);
  assertEquals(readLease(folder.path)?.address, "10.0.0.1/24");
  Deno.writeTextFileSync(`${folder.path}/lease`, whole.slice(0, 40));
  assertEquals(readLeaseEvent(folder.path), undefined);
  Deno.writeTextFileSync(`${folder.path}/lease`, whole.replace("subnet", "sub"));
  assertEquals(readLeaseEvent(folder.path)?.event, "bound");
  assertEquals(readLease(folder.path), undefined, "without a mask nobody can use it");
});

Deno.test("dhcp hook copies what the client knows, byte by byte, and wakes the daemon", async () => {
  using folder = temporary();
  const state = `${folder.path}/dhcp`;
  prepareState(state);
  const lease = `${state}/${"0".repeat(32)}`;
  Deno.mkdirSync(lease);
  assertEquals(leaseFolders(state), [lease]);
  assertEquals(new Deno.Command("mkfifo", { args: [`${state}/wake`] }).outputSync().success, true);
  using wake = Deno.openSync(`${state}/wake`, { read: true, write: true });
  const nasty = "$(touch /tmp/no) `id` ';\"\\\n*";
  const run = async (event: string) => {
    const { code, stderr } = await new Deno.Command("/bin/sh", {
      args: [event],
      cwd: `${state}/hook`,
      clearEnv: true,
      env: { PATH: "/usr/bin:/bin", CNIBOX_LEASE: lease, ip: "10.0.0.1", subnet: "255.255.255.0", domain: nasty },
    }).output();
    assertEquals([code, new TextDecoder().decode(stderr)], [0, ""]);
    const buffer = new Uint8Array(1000);
    const count = await wake.read(buffer);
    return new TextDecoder().decode(buffer.subarray(0, count ?? 0));
  };
  assertEquals(/^0{32} bound \d+\.\d\d \d+\.\d\d\n$/.test(await run("bound")), true);
  const seen = readLeaseEvent(lease);
  assertEquals([seen?.event, seen?.vars.get("domain")], ["bound", nasty]);
  assertEquals(Math.abs((seen?.uptime ?? 0) - Deno.osUptime()) < 60, true);
  await run("nak");
  assertEquals(readLeaseEvent(lease)?.event, "bound", "what is no lease is only told");
  await run("renew");
  assertEquals(readLeaseEvent(lease)?.event, "renew");
  assertEquals([...Deno.readDirSync(lease)].map(({ name }) => name).sort(), ["lease"]);
});

Deno.test("dhcp hook leaves the last lease whole when it cannot write", async () => {
  using folder = temporary();
  const state = `${folder.path}/dhcp`;
  prepareState(state);
  const { code } = await new Deno.Command("/bin/sh", {
    args: ["renew"],
    cwd: `${state}/hook`,
    clearEnv: true,
    env: { PATH: "/usr/bin:/bin", CNIBOX_LEASE: `${state}/gone`, ip: "10.0.0.1" },
    stderr: "null",
  }).output();
  assertEquals(code, 0);
  assertEquals([...Deno.readDirSync(state)].map(({ name }) => name), ["hook"]);
});

Deno.test("dhcp refuses a folder that others may write to", () => {
  using folder = temporary();
  const state = `${folder.path}/dhcp`;
  Deno.mkdirSync(state);
  Deno.chmodSync(state, 0o777);
  assertThrows(() => prepareState(state), Error, "others may write to it");
  Deno.chmodSync(state, 0o700);
  prepareState(state);
  Deno.renameSync(state, `${folder.path}/real`);
  Deno.symlinkSync(`${folder.path}/real`, state);
  assertThrows(() => prepareState(state), Error, "belongs to somebody else");
});
