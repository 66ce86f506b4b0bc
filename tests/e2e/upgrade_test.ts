/** A node that takes containers while cnibox is replaced by another version; one with containers of the reference. */
import { assertEquals } from "@std/assert";
import { VERSION } from "../../lib/version.ts";
import { otherBuild, temporaryFolder } from "../install/support.ts";
import { eventually, inVm, type Json, nodeTest, runPlugin, testNode } from "./support/mod.ts";
import { cniboxDir } from "./support/bin.ts";
import { unmet } from "./support/needs.ts";
import { passToCniboxAndBack } from "./support/replacement.ts";

/** A chain's whole way takes half a minute of an emulated processor. */
const LIVING = inVm ? 4 : 20;

nodeTest(`${LIVING} chains of the reference pass to cnibox and back: CHECK of all, half deleted by each`, {
  needs: ["bridge", "veth", "iptables", "reference"],
}, async ({ node }) => {
  await node.run("umount", "/opt/cni/bin");
  const { ipv4 } = await node.outside();
  await passToCniboxAndBack(node, LIVING, ipv4);
});

const [ADDS, UPGRADES, CALLERS] = [1000, 20, 4];
const BIN = "/opt/upgraded/bin";
const missing = unmet(["bridge", "veth", "tool:strace"]);
if (inVm) missing.push("another version cannot be built in test:vm, whose file system is read-only");
const name = `${ADDS} ADDs during ${UPGRADES} upgrades, and none fails`;

Deno.test({
  name: missing.length > 0 ? `${name} [skipped: ${missing.join("; ")}]` : name,
  ignore: missing.length > 0,
  fn: async (test) => {
    using folder = temporaryFolder();
    const other = await otherBuild(folder.path);
    await using node = await testNode({ binds: { "/run/old": cniboxDir(), "/run/new": other } });
    const install = (from: string) => node.run(`/run/${from}/cnibox`, "install", "--bin-dir", BIN);
    await install("old");
    const conf = {
      cniVersion: "1.0.0",
      name: "pods",
      type: "bridge",
      bridge: "br0",
      isGateway: true,
      ipam: { type: "host-local", subnet: "10.22.0.0/20" },
    };
    const failures: string[] = [];
    const addresses = new Set<string>();
    let [begun, upgrades] = [0, 0];
    const callers = Array.from({ length: CALLERS }, async (_, caller) => {
      const container = await node.container(`c${caller}`);
      while (begun < ADDS || upgrades < UPGRADES) {
        const ifName = `eth${begun++}`;
        const call = { netns: container, containerId: container.name, ifName, path: BIN, stdin: conf } as const;
        const exe = `${BIN}/bridge`;
        const { code, json, stderr } = await runPlugin(node, { ...call, type: "bridge", command: "ADD", exe });
        if (code !== 0 || stderr !== "") failures.push(`${ifName}: ${code} ${JSON.stringify(json)} ${stderr}`);
        else addresses.add((json as Json).ips[0].address);
        // The bridge has no more ports than that.
        if (code === 0) {
          const ended = await runPlugin(node, {
            ...call,
            type: "bridge",
            command: "DEL",
            exe,
            stdin: { ...conf, prevResult: json },
          });
          if (ended.code !== 0) failures.push(`DEL ${ifName}: ${ended.stdout} ${ended.stderr}`);
        }
      }
    });
    const versions: string[] = [];
    while (upgrades < UPGRADES) {
      await install(upgrades % 2 === 0 ? "new" : "old");
      versions.push((await node.run(`${BIN}/cnibox`, "version")).trim());
      upgrades++;
      // Spread over the calls, not over time.
      while (begun < (upgrades * ADDS) / UPGRADES && failures.length === 0) {
        await new Promise((done) => setTimeout(done, 5));
      }
    }
    await Promise.all(callers);
    assertEquals(failures, []);
    assertEquals(versions.slice(0, 2), ["cnibox v9.9.9", `cnibox ${VERSION}`]);
    assertEquals([begun >= ADDS, addresses.size >= ADDS], [true, true]);

    await test.step("a call that the kernel keeps waiting goes on, also when a pod installs, which cannot see it", async () => {
      await install("old");
      // Waits before it asks for its own file.
      const slow = node.spawn([
        ...["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=?readlink,readlinkat"],
        ...["-e", "inject=?readlink,readlinkat:delay_enter=8000000:when=1", `${BIN}/cnibox`, "version"],
      ]);
      await eventually("it has started", async () => {
        return (await node.sh("readlink /proc/[0-9]*/exe || true")).includes(`${BIN}/cnibox\n`);
      });
      await node.run("unshare", "--pid", "--fork", "--mount-proc", "/run/new/cnibox", "install", "--bin-dir", BIN);
      await slow.ended();
      assertEquals([slow.stdout, slow.stderr], [`cnibox ${VERSION}\n`, ""]);
    });
  },
});
