/** `doctor` on DHCP: the daemon that networks need, and the client that the daemon starts. */
import { exists } from "../../kernel/regular_file.ts";
import { findClient } from "../../kernel/udhcpc.ts";
import { isObject, lookup } from "../../cni/decode.ts";
import { type Line, type Node, ok } from "./finding.ts";

const area = "dhcp";

export async function daemons({ lists, host }: Pick<Node, "lists" | "host">): Promise<Line[]> {
  const uses = lists.filter(({ plugins }) =>
    plugins.some(({ config }) => {
      const ipam = lookup(config, "ipam");
      return isObject(ipam) && lookup(ipam, "type") === "dhcp";
    })
  );
  if (uses.length === 0) return [];
  const names = uses.map(({ name }) => name).join(", ");
  const client = await findClient(host);
  return [
    client ? ok(area, `leases are got by ${client.join(" ")}`) : {
      area,
      grade: "failure",
      text: `network ${names} needs BusyBox's udhcpc, and it is missing`,
      breaks: 'no DHCP client: exec: "udhcpc": executable file not found in $PATH',
      fix: "install the package udhcpc, or busybox",
    },
    exists("/run/cni/dhcp.sock", { links: true }) ? ok(area, "the daemon's socket is there") : {
      area,
      grade: "failure",
      text: `network ${names} needs the DHCP daemon, and /run/cni/dhcp.sock is not there`,
      breaks: "error dialing DHCP daemon: dial unix /run/cni/dhcp.sock: connect: no such file or directory",
      fix: "systemctl enable --now cni-dhcp.socket, or /opt/cni/bin/dhcp daemon",
    },
  ];
}
