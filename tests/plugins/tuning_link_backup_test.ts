import { assertEquals } from "@std/assert";
import { keepFile } from "../../lib/kernel/state_file.ts";
import { type Backup, backupPath, backupText, readBackup, staleBackups } from "../../plugins/tuning/link_backup.ts";

const keepBackup = (path: string, backup: Backup) => keepFile(path, backupText(path, backup));
const attachment = { containerID: "c1", ifname: "eth0" };

async function inFolder(work: (folder: string) => Promise<void> | void): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await work(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("a backup has the reference's name, keys and indent", () =>
  inFolder(async (folder) => {
    const path = backupPath(`${folder}/new/`, attachment);
    keepBackup(path, {
      network: "n",
      txQLen: 1000,
      allmulti: false,
      mtu: 1500,
      promisc: false,
      mac: "3e:6f:18:4b:ea:51",
    });
    const text = await Deno.readTextFile(`${folder}/new/c1_eth0.json`);
    assertEquals(
      text,
      '{\n "mac": "3e:6f:18:4b:ea:51",\n "promisc": false,\n "mtu": 1500,\n "allmulti": false,\n "txQLen": 1000,\n "network": "n"\n}',
    );
    assertEquals((await Deno.stat(path)).mode! & 0o777, 0o600);
    assertEquals((await Deno.stat(`${folder}/new`)).mode! & 0o777, 0o700);
    assertEquals([...Deno.readDirSync(`${folder}/new`)].length, 1);
  }));

Deno.test("a second backup keeps the older values and adds what they lack", () =>
  inFolder((folder) => {
    const path = backupPath(folder, attachment);
    keepBackup(path, { network: "n", mtu: 1500, sysctl: { "net/a": "1" } });
    keepBackup(path, { network: "n", mtu: 1400, txQLen: 5, sysctl: { "net/a": "2", "net/b": "3" } });
    assertEquals(readBackup(path), { network: "n", mtu: 1500, txQLen: 5, sysctl: { "net/a": "1", "net/b": "3" } });
  }));

Deno.test("a backup is taken back to nothing, or to what was there", () =>
  inFolder(async (folder) => {
    const path = backupPath(folder, attachment);
    keepBackup(path, { mtu: 1500 })();
    assertEquals(readBackup(path), undefined);
    await Deno.writeTextFile(path, '{"mtu": 9000, "other": 1}');
    keepBackup(path, { txQLen: 5 })();
    assertEquals(await Deno.readTextFile(path), '{"mtu": 9000, "other": 1}');
  }));

Deno.test("a backup of the reference is read, and unknown keys are ignored", () =>
  inFolder(async (folder) => {
    const path = backupPath(folder, attachment);
    await Deno.writeTextFile(
      path,
      '{"mac":"","promisc":false,"mtu":0,"txQLen":0,"speed":5,"sysctl":{"kernel/x":"1","net/../x":"1"}}',
    );
    assertEquals(readBackup(path), { promisc: false, txQLen: 0, sysctl: {} });
  }));

for (const text of ["", "{", "[]", "null"]) {
  Deno.test(`a backup that holds ${JSON.stringify(text)} is broken`, () =>
    inFolder(async (folder) => {
      const path = backupPath(folder, attachment);
      await Deno.writeTextFile(path, text);
      assertEquals(readBackup(path), "broken");
    }));
}

Deno.test("backups are stale when they are this network's and of no valid attachment", () =>
  inFolder(async (folder) => {
    const write = (id: string, network?: string) =>
      keepBackup(backupPath(folder, { containerID: id, ifname: "eth0" }), { mtu: 1500, ...(network && { network }) });
    write("gone", "n");
    write("here", "n");
    write("theirs", "other");
    write("reference");
    await Deno.writeTextFile(`${folder}/broken_eth0.json`, "{");
    const stale = staleBackups(folder, "n", [{ containerID: "here", ifname: "eth0" }]);
    assertEquals(stale, [{ path: `${folder}/gone_eth0.json`, backup: { mtu: 1500, network: "n" } }]);
    assertEquals([...Deno.readDirSync(folder)].length, 5);
    assertEquals(staleBackups(`${folder}/nowhere`, "n", []), []);
  }));

Deno.test("a stale backup knows its place, unless another container's interface is there by now", () =>
  inFolder((folder) => {
    const place = { netns: "/run/netns/a", id: "4:1", ifName: "eth0", index: 2 };
    const write = (id: string, where = place) =>
      keepBackup(backupPath(folder, { containerID: id, ifname: "eth0" }), { mtu: 1500, network: "n", place: where });
    const ids = (valid: readonly { containerID: string; ifname: string }[]) =>
      Object.fromEntries(
        staleBackups(folder, "n", valid).map(({ path, backup }) => [path.split("/").at(-1), backup.place?.id]),
      );
    write("one");
    assertEquals(staleBackups(folder, "n", [])[0]?.backup.place, place);
    write("two", { ...place, id: "4:2" });
    assertEquals(ids([]), { "one_eth0.json": "4:1", "two_eth0.json": "4:2" });
    write("three");
    assertEquals(ids([{ containerID: "three", ifname: "eth0" }]), {
      "one_eth0.json": undefined,
      "two_eth0.json": "4:2",
    });
  }));

Deno.test("a second backup names the newer place, and a name that no link has is none", () =>
  inFolder(async (folder) => {
    const path = backupPath(folder, attachment);
    const place = { netns: "/run/netns/a", id: "4:1", ifName: "eth0", index: 2 };
    keepBackup(path, { mtu: 1500, network: "n", place });
    keepBackup(path, { mtu: 1400, network: "n", place: { ...place, id: "4:9" } });
    assertEquals(readBackup(path), { mtu: 1500, network: "n", place: { ...place, id: "4:9" } });
    await Deno.writeTextFile(path, JSON.stringify({ mtu: 1500, place: { ...place, ifName: "a/b" } }));
    assertEquals(readBackup(path), { mtu: 1500 });
  }));
