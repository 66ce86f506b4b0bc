/** `doctor` on DHCP: the daemon that networks need, and the client that the daemon starts. */
import { exists } from "../../kernel/regular_file.ts";
import { findClient } from "../../kernel/udhcpc.ts";
import { ipamType } from "../setup.ts";
import { findings, type Line, type Node } from "./finding.ts";

export async function daemons({ lists, host }: Pick<Node, "lists" | "host">): Promise<Line[]> {
  const { ok, failure } = findings("dhcp");
  const uses = lists.filter(({ plugins }) => plugins.some(({ config }) => ipamType(config) === "dhcp"));
  if (uses.length === 0) return [];
  const names = uses.map(({ name }) => name).join(", ");
  const client = await findClient(host);
  return [
    client
      ? ok(`leases are got by ${client.join(" ")}`)
      : failure(`network ${names} needs BusyBox's udhcpc, and it is missing`, {
        breaks: 'no DHCP client: exec: "udhcpc": executable file not found in $PATH',
        fix: "install the package udhcpc, or busybox",
      }),
    exists("/run/cni/dhcp.sock", { links: true })
      ? ok("the daemon's socket is there")
      : failure(`network ${names} needs the DHCP daemon, and /run/cni/dhcp.sock is not there`, {
        breaks: "error dialing DHCP daemon: dial unix /run/cni/dhcp.sock: connect: no such file or directory",
        fix: "systemctl enable --now cni-dhcp.socket, or /opt/cni/bin/dhcp daemon",
      }),
  ];
}
