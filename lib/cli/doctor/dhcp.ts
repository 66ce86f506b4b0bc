/** `doctor` on DHCP: the daemon that networks need. */
import { exists } from "../../kernel/regular_file.ts";
import { isObject, lookup } from "../../cni/decode.ts";
import { type Line, type Node, ok } from "./finding.ts";

export function daemons({ lists }: Node): Line[] {
  const area = "dhcp";
  const uses = lists.filter(({ plugins }) =>
    plugins.some(({ config }) => {
      const ipam = lookup(config, "ipam");
      return isObject(ipam) && lookup(ipam, "type") === "dhcp";
    })
  );
  if (uses.length === 0) return [];
  if (exists("/run/cni/dhcp.sock", { links: true })) return [ok(area, "the daemon's socket is there")];
  return [{
    area,
    grade: "failure",
    text: `network ${
      uses.map(({ name }) => name).join(", ")
    } needs the DHCP daemon, and /run/cni/dhcp.sock is not there`,
    breaks: "error dialing DHCP daemon: dial unix /run/cni/dhcp.sock: connect: no such file or directory",
    fix: "systemctl enable --now cni-dhcp.socket, or /opt/cni/bin/dhcp daemon",
  }];
}
