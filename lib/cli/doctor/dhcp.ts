/** `doctor` on DHCP: the daemon that networks need. */
import { exists } from "../../kernel/regular_file.ts";
import { ipamType } from "../setup.ts";
import { findings, type Line, type Node } from "./finding.ts";

export function daemons({ lists }: Node): Line[] {
  const { ok, failure } = findings("dhcp");
  const uses = lists.filter(({ plugins }) => plugins.some(({ config }) => ipamType(config) === "dhcp"));
  if (uses.length === 0) return [];
  if (exists("/run/cni/dhcp.sock", { links: true })) return [ok("the daemon's socket is there")];
  const names = uses.map(({ name }) => name).join(", ");
  return [failure(`network ${names} needs the DHCP daemon, and /run/cni/dhcp.sock is not there`, {
    breaks: "error dialing DHCP daemon: dial unix /run/cni/dhcp.sock: connect: no such file or directory",
    fix: "systemctl enable --now cni-dhcp.socket, or /opt/cni/bin/dhcp daemon",
  })];
}
