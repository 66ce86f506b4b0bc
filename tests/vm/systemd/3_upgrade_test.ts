/** A living node goes from the reference to cnibox and back, and its containers notice nothing. */
import { assertEquals } from "@std/assert";
import { referenceDir } from "../../e2e/support/bin.ts";
import { exec, exists, install, machineTest, pods, rules, run, sh } from "./machine.ts";

// deno-lint-ignore no-explicit-any -- a CNI result
type Json = any;

const bin = "/opt/cni/bin";
/** A chain's whole way takes half a minute of an emulated processor. */
const COUNT = 4;
const [bridge, ...rest] = pods.plugins;
const chain = [{ ...bridge, ipam: { type: "host-local", ranges: [[{ subnet: "10.23.0.0/24" }]] } }, ...rest];
const names = Array.from({ length: COUNT }, (_, at) => `pod${at}`);
const results = new Map<string, Json>();

/** One plugin of the chain, called as a runtime calls it, whoever's is installed. */
async function call(command: string, plugin: Json, name: string, prevResult: Json): Promise<Json> {
  const { capabilities: _, ...conf } = plugin;
  const portMappings = [{ hostPort: 9000 + names.indexOf(name), containerPort: 80, protocol: "tcp" }];
  const { code, stdout, stderr } = await exec([`${bin}/${plugin.type}`], {
    input: JSON.stringify({
      ...conf,
      cniVersion: "1.0.0",
      name: "living",
      ...(plugin.type === "portmap" ? { runtimeConfig: { portMappings } } : {}),
      ...(prevResult === undefined ? {} : { prevResult }),
    }),
    env: {
      CNI_COMMAND: command,
      CNI_CONTAINERID: name,
      CNI_NETNS: `/run/netns/${name}`,
      CNI_IFNAME: "eth0",
      CNI_PATH: bin,
    },
  });
  assertEquals(code, 0, `${command} ${plugin.type} ${name}: ${stdout}${stderr}`);
  return stdout.trim() === "" ? undefined : JSON.parse(stdout);
}

async function check(some: string[]): Promise<void> {
  for (const name of some) {
    for (const plugin of chain) await call("CHECK", plugin, name, results.get(name));
  }
}

async function del(some: string[]): Promise<void> {
  for (const name of some) {
    for (const plugin of chain.toReversed()) await call("DEL", plugin, name, results.get(name));
  }
}

const say = (text: string) => Deno.stdout.writeSync(new TextEncoder().encode(`${text}\n`));

machineTest("chains of the reference pass to cnibox and back: CHECK of all, half deleted by each", async () => {
  await exec(["./install.sh", "--uninstall"]);
  await sh(`rm -rf ${bin}; mkdir -p ${bin}; cp -a ${referenceDir()}/. ${bin}/; nft flush ruleset`);
  const reference = await sh(`cd ${bin}; sha256sum *`);
  const before = await rules();
  for (const name of names) {
    await run("ip", "netns", "add", name);
    let result: Json = undefined;
    for (const plugin of chain) result = await call("ADD", plugin, name, result);
    results.set(name, result);
  }
  say(`${COUNT} chains of the reference`);
  const [first, second] = [names.slice(0, COUNT / 2), names.slice(COUNT / 2)];

  await install("--replace");
  assertEquals(await Deno.readLink(`${bin}/bridge`), "cnibox");
  await check(names);
  say("checked by cnibox");
  await del(first);
  assertEquals((await run("ip", "-j", "link", "show", "master", "br1")).match(/"ifname"/g)?.length, COUNT / 2);

  await run("./install.sh", "--uninstall");
  assertEquals(exists(`${bin}/cnibox`), false);
  assertEquals(await sh(`cd ${bin}; sha256sum *`), reference);
  await check(second);
  say("the other half checked by the reference");
  await del(second);
  const left = (await rules()).filter((line) => /pod\d|10\.23\./.test(line));
  assertEquals([left, before.filter((line) => /pod\d/.test(line))], [[], []]);
  assertEquals(JSON.parse(await run("ip", "-j", "link", "show", "master", "br1")), []);
  assertEquals(await sh("ls /var/lib/cni/networks/living | grep '^[0-9]' || true"), "");
});
