/** The hardware address that a container's link is asked to have: bridge, macvlan and tap. */
import { parseArgs } from "../cni/args.ts";
import { object, text } from "../cni/decode.ts";
import { internal } from "../cni/error.ts";
import { isUnicastMac, macLength, parseMac } from "../net/mac.ts";

/** Keys that ask for a MAC; CNI_ARGS `MAC=` comes between them. */
export const macKeys = {
  mac: text("", "MAC of the container's link; CNI_ARGS MAC= and runtimeConfig.mac win over it"),
  runtimeConfig: object(
    { mac: text("", "MAC of the container's link (capability mac)") },
    "what the runtime grants by capabilities",
  ),
};

/** What is asked for, as it was written; later sources win: `mac`, CNI_ARGS `MAC=`, `runtimeConfig.mac`. */
export function askedMac(
  conf: { mac: string; runtimeConfig: { mac: string } | undefined },
  args: string,
): string {
  const { MAC = "" } = parseArgs(args, ["MAC"]);
  return conf.runtimeConfig?.mac || MAC || conf.mac;
}

/**
 * The address as iproute2 takes it, or undefined when none is asked for. `failing`: words for one that no link can
 * have; `reading`: for one that is none.
 */
export function checkedMac(
  asked: string,
  failing: string,
  reading = `invalid args ${asked} for MAC addr`,
): string | undefined {
  if (asked === "") return undefined;
  const mac = parseMac(asked);
  if (mac === undefined) {
    throw internal(
      `${reading}: address ${asked}: invalid MAC address`,
      "write it like 02:00:00:00:00:01; it comes from the configuration, CNI_ARGS MAC=, or runtimeConfig.mac",
    );
  }
  if (macLength(mac) !== 6) {
    throw internal(
      `${failing}: invalid argument`,
      `the MAC ${asked} has ${macLength(mac)} bytes; an Ethernet address has 6`,
    );
  }
  if (!isUnicastMac(mac)) {
    throw internal(
      `${failing}: cannot assign requested address`,
      `the MAC ${asked} is a group address, or zero: a link needs a unicast address, such as one that starts with 02`,
    );
  }
  return mac;
}
