/**
 * A network with a DHCP server, for the tests of dhcp: a switch in a namespace of its own, containers plugged into it.
 */
import type { Background, Namespace, Node } from "./node.ts";
import { eventually } from "./traffic.ts";

/** The server's address, and the network that it serves. */
export const SERVER = "192.168.1.1";

/** The switch, with the server's address on it. */
export async function switchWithServer(node: Node): Promise<Namespace> {
  const world = await node.container("world");
  await world.ip(
    "link add sw0 type bridge",
    "link set sw0 up",
    `addr add ${SERVER}/24 dev sw0`,
    "link set lo up",
  );
  return world;
}

let ports = 0;

/** Plugs a container into the switch, as `ifName`, which stays down. */
export async function plug(node: Node, world: Namespace, container: Namespace, ifName = "eth0"): Promise<void> {
  const port = `p${++ports}`;
  await node.ip(`link add ${port} netns ${world.name} type veth peer name ${ifName} netns ${container.name}`);
  await world.ip(`link set ${port} master sw0`, `link set ${port} up`);
}

/** A container that is plugged in. */
export async function pluggedContainer(node: Node, world: Namespace, name?: string): Promise<Namespace> {
  const container = await node.container(name);
  await plug(node, world, container);
  return container;
}

/** dnsmasq on the switch. Its log, on standard error, has every message and its options. */
export async function dnsmasq(
  world: Namespace,
  options: string[] = [],
  range = ".50,192.168.1.99",
): Promise<Background> {
  const server = world.spawn([
    "dnsmasq",
    "--no-daemon",
    "--conf-file=/dev/null",
    "--port=0",
    "--interface=sw0",
    "--bind-interfaces",
    `--dhcp-range=192.168.1${range},2m`,
    "--dhcp-leasefile=/run/dnsmasq.leases",
    "--dhcp-authoritative",
    "--no-ping",
    "--log-dhcp",
    "--user=root",
    ...options,
  ]);
  await server.until(/sockets bound exclusively/);
  return server;
}

/** Messages of one kind that dnsmasq has logged: DHCPACK, DHCPRELEASE, … */
export function seen(server: Background, message: string): number {
  return server.stderr.split("\n").filter((line) => line.includes(` ${message}(`)).length;
}

/** Lines of dnsmasq's lease file: expiry, hardware address, address, name, client identifier. */
export async function dnsmasqLeases(node: Node): Promise<string[]> {
  return ((await node.read("/run/dnsmasq.leases")) ?? "").split("\n").filter((line) => line !== "");
}

/** ISC dhcpd on the switch, with leases of `seconds`. */
export async function dhcpd(
  node: Node,
  world: Namespace,
  { seconds, range = "192.168.1.100 192.168.1.120", more = "" }: { seconds: number; range?: string; more?: string },
): Promise<Background> {
  await node.write(
    "/run/dhcpd.conf",
    `authoritative; default-lease-time ${seconds}; max-lease-time ${seconds}; min-lease-time ${seconds}; ping-check false;
subnet 192.168.1.0 netmask 255.255.255.0 { range ${range}; option routers 192.168.1.1; ${more} }
`,
  );
  await node.sh("touch /run/dhcpd.leases");
  const server = world.spawn(
    ["dhcpd", "-f", "-d", "-4", "-cf", "/run/dhcpd.conf", "-lf", "/run/dhcpd.leases", "-pf", "/run/dhcpd.pid", "sw0"],
  );
  await server.until(/Server starting service/);
  return server;
}

/** BusyBox udhcpd on the switch: sends nothing but what is configured. */
export async function udhcpd(node: Node, world: Namespace, lines: string[]): Promise<Background> {
  await node.write(
    "/run/udhcpd.conf",
    ["start 192.168.1.130", "end 192.168.1.140", "interface sw0", "lease_file /run/udhcpd.leases", ...lines, ""].join(
      "\n",
    ),
  );
  await node.sh("touch /run/udhcpd.leases");
  const server = world.spawn(["busybox", "udhcpd", "-f", "/run/udhcpd.conf"]);
  await server.until(/started/);
  return server;
}

/** Our daemon, running: `args` are its flags. */
export async function daemon(node: Node, args: string[] = []): Promise<Background> {
  const process = node.spawn(["/opt/cni/bin/dhcp", "daemon", "-pidfile", "/run/dhcp.pid", ...args]);
  await process.until(/listening on/, 60_000);
  return process;
}

/** The reference's daemon, running. */
export async function referenceDaemon(node: Node, args: string[] = []): Promise<Background> {
  const process = node.spawn(["/opt/cni/ref/dhcp", "daemon", ...args]);
  await eventually("the reference's daemon listens", async () => (await node.list("/run/cni")).includes("dhcp.sock"));
  return process;
}

/** Kills a daemon as nothing else can: it gets no chance to clean up. */
export async function kill(node: Node, process: Background): Promise<void> {
  await node.sh('kill -9 "$(cat /run/dhcp.pid)"');
  await process.ended();
}

/** Process IDs and command lines of the DHCP clients that run. */
export async function clients(node: Node): Promise<string[]> {
  const { stdout } = await node.exec(["pgrep", "-a", "-f", "udhcpc -f"]);
  return stdout.split("\n").filter((line) => line !== "");
}

/** Folders of attachments that our daemon, or the next one, knows. */
export async function attachments(node: Node, state = "/run/cni/dhcp"): Promise<string[]> {
  return (await node.list(state)).filter((name) => /^[0-9a-f]{32}$/.test(name));
}
