/** What STATUS says is missing. */
import { CniError, code } from "../cni/error.ts";
import { missingTool, toolPath } from "../kernel/run.ts";

const PACKAGES: Readonly<Record<string, string>> = {
  ip: "iproute2",
  tc: "iproute2, on some systems iproute-tc",
  nsenter: "util-linux",
  nft: "nftables",
  runcon: "coreutils",
};

/** STATUS of the tools that a plugin starts; for ADD, before anything is touched, with another code for `failure`. */
export function statusTools(names: readonly string[], failure: number = code.notAvailable): void {
  const missing = names.find((name) => toolPath(name) === "");
  if (missing === undefined) return;
  const details = `install the package ${PACKAGES[missing] ?? missing}`;
  throw new CniError(failure, missingTool(missing), details);
}
