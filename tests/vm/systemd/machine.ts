/** A whole machine under systemd, which a test may change as an administrator does: the virtual one, and no other. */
import { fromFileUrl } from "@std/path";
import { units as unitTexts } from "../../../lib/cli/units.ts";
import { cniboxDir } from "../../e2e/support/bin.ts";
import { inVm } from "../../e2e/support/vm.ts";

const root = fromFileUrl(new URL("../../../", import.meta.url));

/**
 * A test on the machine itself. It is skipped everywhere but in the virtual machine that tests/vm/systemd.sh has
 * readied.
 */
export function machineTest(name: string, body: () => Promise<void>): void {
  const ours = inVm && exists("/etc/cnibox-vm") && exists("/run/systemd/system");
  Deno.test({
    name: ours ? name : `${name} [skipped: only in test:vm, under systemd]`,
    ignore: !ours,
    sanitizeResources: false,
    fn: body,
  });
}

/** No command takes longer, in seconds, however slow the processor is: what hangs has to say what it was. */
const LIMIT_S = 600;

/**
 * Runs a command, and returns what came of it, also when it failed. One that does not end in time is killed, and
 * fails.
 */
export async function exec(argv: string[], options: { input?: string; env?: Record<string, string> } = {}) {
  const child = new Deno.Command("timeout", {
    args: ["-k", "10", `${LIMIT_S}`, ...argv],
    cwd: root,
    env: options.env ?? {},
    stdin: options.input === undefined ? "null" : "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  if (options.input !== undefined) {
    const writer = child.stdin.getWriter();
    await writer.write(new TextEncoder().encode(options.input));
    await writer.close();
  }
  const { code, stdout, stderr } = await child.output();
  if (code === 124) throw new Error(`${argv.join(" ")}: still running after ${LIMIT_S} s`);
  return { code, stdout: new TextDecoder().decode(stdout), stderr: new TextDecoder().decode(stderr) };
}

/** Runs a command that has to succeed and returns its standard output. */
export async function run(...argv: string[]): Promise<string> {
  const { code, stdout, stderr } = await exec(argv);
  if (code !== 0) throw new Error(`${argv.join(" ")}: exit ${code}\n${stderr}${stdout}`);
  return stdout;
}

/** Runs lines of shell, each of which has to succeed. */
export const sh = (script: string): Promise<string> => run("sh", "-euc", script);

/** Runs install.sh with the executable under test. */
export const install = (...more: string[]): Promise<string> =>
  run("./install.sh", "--from", `${cniboxDir()}/cnibox`, "--no-deps", ...more);

/** Runs an operator's command of the installed cnibox. */
export const cnibox = (...args: string[]): Promise<string> => run("/opt/cni/bin/cnibox", ...args);

/** What systemd says of a unit: "active", "inactive", "failed", … */
export async function stateOf(unit: string): Promise<string> {
  return (await exec(["systemctl", "is-active", unit])).stdout.trim();
}

/** What a unit has said in this boot, one entry a line; it is printed too. */
export async function journalOf(unit: string): Promise<string> {
  const text = await run("journalctl", "--boot", "--no-pager", "--output=short-monotonic", "--unit", unit);
  Deno.stdout.writeSync(new TextEncoder().encode(text));
  return text;
}

/**
 * The project's own units that run on every node: all but the service that a socket starts, and the one that has to be
 * configured.
 */
export function units(): string[] {
  const others = ["cni-dhcp.service", "cnibox-node.service"];
  return Object.keys(unitTexts("/opt/cni/bin")).filter((name) => !others.includes(name));
}

/** The network that the machine's containers are on: it masquerades, publishes ports, and has thirteen addresses. */
export const pods = {
  cniVersion: "1.1.0",
  name: "pods",
  plugins: [
    {
      type: "bridge",
      bridge: "br1",
      isDefaultGateway: true,
      ipMasq: true,
      ipam: { type: "host-local", ranges: [[{ subnet: "10.22.0.0/28" }]] },
    },
    { type: "portmap", capabilities: { portMappings: true } },
    { type: "firewall" },
  ],
};

/** The world behind an uplink, which knows no way back to containers. */
export async function makeOutside(): Promise<void> {
  await sh(`
ip netns add outside
ip link add uplink type veth peer name eth0 netns outside
ip addr add 192.0.2.1/24 dev uplink
ip link set uplink up
ip -n outside addr add 192.0.2.2/24 dev eth0
ip -n outside link set eth0 up
`);
}

/** Whether a container reaches the world, which answers only to whom is masqueraded. */
export async function reachesOutside(container: string): Promise<boolean> {
  return (await exec(["ip", "netns", "exec", container, "ping", "-n", "-q", "-c1", "-W3", "192.0.2.2"])).code === 0;
}

/** The rules of iptables, without counters. */
export async function rules(): Promise<string[]> {
  return (await run("iptables-save")).split("\n").filter((line) => line.startsWith("-"));
}

export function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}
