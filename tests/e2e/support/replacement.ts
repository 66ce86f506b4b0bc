/** A living node goes from the reference plugins to cnibox and back, and its containers notice nothing. */
import { assertEquals } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { cniboxDir, referenceDir } from "./bin.ts";
import { type ExecOptions, type Output, PATH } from "./node.ts";
import type { Json } from "./plugins.ts";

/** A throw-away node, or the virtual machine itself. */
export interface Host {
  exec(argv: string[], options?: ExecOptions): Promise<Output>;
}

const installer = fromFileUrl(new URL("../../../install.sh", import.meta.url));
const bin = "/opt/cni/bin";
const chain: Json[] = [
  {
    type: "bridge",
    bridge: "br1",
    isDefaultGateway: true,
    ipMasq: true,
    ipam: { type: "host-local", ranges: [[{ subnet: "10.23.0.0/24" }]] },
  },
  { type: "portmap" },
  { type: "firewall" },
];

/**
 * Installs the reference in /opt/cni/bin, which is empty, and gives `count` containers chains of it; cnibox takes its
 * place, checks all and deletes half; the reference is put back, checks the other half and deletes it. Whoever is
 * checked also reaches `world`, an address that answers only to the host.
 */
export async function passToCniboxAndBack(host: Host, count: number, world: string): Promise<void> {
  const run = async (...argv: string[]) => {
    const { code, stdout, stderr } = await host.exec(argv);
    assertEquals(code, 0, `${argv.join(" ")}: ${stderr}${stdout}`);
    return stdout;
  };
  const sh = (script: string) => run("sh", "-euc", script);
  const rules = async () => (await run("iptables-save")).split("\n").filter((line) => /pod\d|10\.23\./.test(line));
  const ports = async () => JSON.parse(await run("ip", "-j", "link", "show", "master", "br1")).length;
  const names = Array.from({ length: count }, (_, at) => `pod${at}`);
  const results = new Map<string, Json>();
  const each = async (command: string, some: string[], plugins: Json[]) => {
    for (const name of some) {
      for (const plugin of plugins) {
        const prevResult = results.get(name);
        const portMappings = [{ hostPort: 9000 + names.indexOf(name), containerPort: 80, protocol: "tcp" }];
        const conf = { ...plugin, cniVersion: "1.0.0", name: "living", prevResult, runtimeConfig: { portMappings } };
        const env = {
          PATH,
          CNI_COMMAND: command,
          CNI_CONTAINERID: name,
          CNI_NETNS: `/run/netns/${name}`,
          CNI_IFNAME: "eth0",
          CNI_PATH: bin,
        };
        const { code, stdout, stderr } = await host.exec([`${bin}/${plugin.type}`], {
          input: JSON.stringify(conf),
          env,
        });
        assertEquals(code, 0, `${command} ${plugin.type} ${name}: ${stdout}${stderr}`);
        if (command === "ADD") results.set(name, JSON.parse(stdout));
      }
    }
  };
  const check = async (some: string[], whose: string) => {
    await each("CHECK", some, chain);
    for (const name of some) await run("ip", "netns", "exec", name, "ping", "-n", "-q", "-c1", "-W5", world);
    say(`${some.length} of ${count} checked by ${whose}`);
  };

  // Root's, whoever has fetched them: the installer refuses a folder of somebody else's.
  await sh(`mkdir -p ${bin}; cp -R ${referenceDir()}/. ${bin}/`);
  const sums = () => sh(`cd ${bin}; sha256sum *`);
  const reference = await sums();
  for (const name of names) await run("ip", "netns", "add", name);
  await each("ADD", names, chain);
  assertEquals(await ports(), count);
  const [first, second] = [names.slice(0, count / 2), names.slice(count / 2)];

  await run(installer, "--from", `${cniboxDir()}/cnibox`, "--no-deps", "--replace");
  assertEquals((await run("readlink", `${bin}/bridge`)).trim(), "cnibox");
  await check(names, "cnibox");
  await each("DEL", first, chain.toReversed());
  assertEquals(await ports(), count / 2);

  await run(installer, "--uninstall");
  assertEquals(await sums(), reference);
  await check(second, "the reference");
  await each("DEL", second, chain.toReversed());
  assertEquals([await rules(), await ports()], [[], 0]);
  assertEquals(await sh("ls /var/lib/cni/networks/living | grep '^[0-9]' || true"), "");
}

function say(text: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(`${text}\n`));
}
