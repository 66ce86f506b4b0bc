/**
 * `sticky` of host-local: which pod had which address, so that one of the same namespace and name gets it again. One
 * file in the folder of the leases, read and written while its lock is held; loaded only where it is asked for.
 */
import { readFileIfThere, replaceFile } from "../kernel/state_file.ts";
import { type Address, formatAddress, parseAddress } from "../net/cidr.ts";
import type { ContainerCall } from "../cni/plugin.ts";
import type { Memory } from "./allocator.ts";

const NAME = "cnibox-sticky";

/** How many addresses are remembered: those that were given last. */
const LIMIT = 4096;

/** What a pod's interface had; undefined when the arguments of the runtime name no pod. */
export function memoryOf(
  folder: string,
  { args, ifName, warn, perform }: Pick<ContainerCall, "args" | "ifName" | "warn" | "perform">,
): Memory | undefined {
  const pairs = args.split(";").map((pair) => pair.split("="));
  const [namespace = "", pod = ""] = ["K8S_POD_NAMESPACE", "K8S_POD_NAME"].map((name) =>
    pairs.findLast(([key]) => key === name)?.[1]
  );
  // Names of Kubernetes, and nothing that could be another line.
  if (![namespace, pod].every((name) => /^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$/.test(name))) return undefined;
  const path = `${folder}/.${NAME}`;
  const owner = ` ${namespace}/${pod} ${ifName}`;
  const lines = () => {
    try {
      return (readFileIfThere(path) ?? "").split("\n").filter((line) => line.includes(" "));
    } catch (error) {
      warn(`${path} cannot be read: ${(error as Error).message}`);
      return [];
    }
  };
  const addressOf = (line: string) => line.slice(0, line.indexOf(" "));
  const isOwn = (line: string) => line.slice(addressOf(line).length) === owner;
  const after = (addresses: readonly Address[]) => {
    const ips = addresses.map(formatAddress);
    const others = lines().filter((line) => !isOwn(line) && !ips.includes(addressOf(line)));
    return `${[...others, ...ips.map((ip) => ip + owner)].slice(-LIMIT).join("\n")}\n`;
  };
  return {
    had: () => lines().filter(isOwn).flatMap((line) => parseAddress(addressOf(line)) ?? []),
    keep: (addresses) => {
      const text = after(addresses);
      const effect = { file: path, text, why: "the pod's next container gets the address again" };
      try {
        perform(effect, () => replaceFile(path, text, { as: `${folder}/${NAME}` }));
      } catch (error) {
        warn(`${path} cannot be written: ${(error as Error).message}`);
      }
    },
  };
}
