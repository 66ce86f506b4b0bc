/** Failures of iptables and nft as errors of the protocol: what was waited for, what is missing, what to install. */
import { CniError, code, internal } from "../cni/error.ts";
import { holderOf } from "../kernel/lock_holder.ts";
import { LOCK_WAIT_S, TableError } from "../kernel/iptables.ts";
import { NftError } from "../kernel/nft.ts";

/** Where iptables waits for its turn, unless XTABLES_LOCKFILE says otherwise, which our tools are not told. */
const XTABLES_LOCK = "/run/xtables.lock";

function xtablesHolder(): string {
  try {
    return holderOf(Deno.statSync(XTABLES_LOCK).ino ?? 0);
  } catch {
    return "the tables of the newer iptables have no lock: they were changed all the time";
  }
}

/**
 * The error of the protocol for a refused transaction. `doing` goes in front of the tool's words, as the reference has
 * it. A held lock becomes code 11, so that the runtime tries again.
 */
export function ruleError(error: unknown, doing = ""): unknown {
  const front = doing === "" ? "" : `${doing}: `;
  if (error instanceof TableError) {
    const tool = (error.command.argv[0] ?? "").replace(/-(restore|save)$/, "");
    switch (error.refusal) {
      case "locked":
        return new CniError(
          code.tryAgain,
          `${front}${error.message}`,
          `another program held the xtables lock (${XTABLES_LOCK}) for more than ${LOCK_WAIT_S} s; nothing was changed; ` +
            xtablesHolder(),
        );
      case "missing":
        return internal(
          `${front}failed to locate ${tool}: ${error.message}`,
          `install the package iptables, or set the backend to "nftables"`,
        );
      case "absent":
      case "unusable":
        return internal(
          `${front}${error.message}`,
          `${tool} does not work with this kernel; load its modules, or set the backend to "nftables"`,
        );
      case "unreadable":
        return internal(
          `${front}${error.message}`,
          `somebody has put rules of nft into a table of ${tool}: \`nft list ruleset\` shows them; they belong into a table of their own`,
        );
      case "refused":
        return internal(`${front}${error.message}`, inputOf(error));
    }
  }
  if (error instanceof NftError) {
    const advice = error.refusal === "missing" ? "install the package nftables" : inputOf(error);
    return internal(`${front}${error.message}`, advice);
  }
  return error;
}

function inputOf({ command }: TableError | NftError): string {
  const text = command.input?.join("").trim() ?? "";
  return text === "" ? "" : `input: ${text.replaceAll("\n", "; ").slice(0, 800)}`;
}
