/** What a tool's words mean. Nothing else reads a tool's wording, which changes with its version and the kernel's. */
import { CommandError, type Output } from "./process.ts";

/** What a tool can say that decides something. */
const WORDS = {
  /** What is to be removed or looked at is not there. */
  absent:
    /Cannot find device|does not exist|No such (file or directory|process|device)|Link not found|Bad rule|No chain\/target\/match|not found|Cannot assign requested address|Invalid handle|handle of zero|Cannot find specified qdisc/,
  noDevice: /Cannot find device/,
  kindUnknown: /not supported|Unknown device type|RTNETLINK answers: No such device/,
  nameTaken: /File exists|new interface name/,
  /** nsenter did not get into the namespace. */
  notEntered: /^nsenter: /,
  overdue: / did not end within [0-9.]+ s$/,
  /** There is no such chain, in the words of either variant of iptables; any other failure may hide one. */
  noChain: /No chain\/target\/match by that name|[Cc]hain .* does not exist/,
  tablesLocked: /xtables lock|Resource temporarily unavailable/,
  /** Rules of nft are in the table; iptables 1.8.9 on nf_tables says so of a chain that is not there, too. */
  tableUnreadable: /is incompatible, use 'nft' tool/,
  /**
   * This kernel has no such table, in the words of either variant: each has tried to load its module before. The words
   * for other reasons (no permission, no memory) prove nothing.
   */
  tableAbsent:
    /tables who\?|Table does not exist|Failed to initialize nft: Protocol not supported|generation id: Invalid argument/,
  /** The older variant's restore does not say why. */
  tablesUnusable: /initiali[sz]e (?:ip6?tables )?table|[Cc](?:an't|annot) initialize|Failed to initialize nft/,
  noFamily: /Address family not supported/,
  /** nft, in the first line alone: below it are places in its input. */
  nftAbsent: /^.*No such file or directory/,
  /**
   * The server's answer to a certificate of ours, or to none. With TLS 1.3 it comes after the request, which the server
   * has not read.
   */
  certificateAlert:
    /\balert (bad certificate|certificate (required|expired|revoked|unknown)|unknown ca|access denied|handshake failure)\b/,
  noFlows: / 0 flow entries/,
} as const;

/** Does a tool say this? `from`: what it left behind, or the failure that was made of it. */
export function says(from: unknown, what: keyof typeof WORDS): boolean {
  const output = from instanceof CommandError ? from.output : from instanceof Error ? undefined : from as Output;
  return output !== undefined && WORDS[what].test(output.stderr);
}

/** Does this failure say that the thing to be removed is not there? */
export function isAbsent(error: unknown): boolean {
  return error instanceof CommandError && says(error, "absent");
}

/** Did this command not end in time? */
export function isOverdue(error: unknown): boolean {
  return error instanceof CommandError && error.output.code === -1 && says(error, "overdue");
}

/** The line of its input that a tool stopped at, from 1: of a batch of iproute2, or of a transaction of iptables. */
export function failedLine({ stderr }: Output): number | undefined {
  const line = /Command failed -:(\d+)|line (\d+) failed/.exec(stderr);
  return line ? Number(line[1] ?? line[2]) : undefined;
}

/** The word that iproute2's parser refused: then it ends the whole batch, and names no line. */
export function refusedWord({ stderr }: Output): string | undefined {
  return /^Error: .*(?:rather than|argument) "([^"]*)"/m.exec(stderr)?.[1];
}

/** The complaints about the lines of a batch that went on past them (`-force`), each with its line, from 1. */
export function complaints(output: Output): { readonly line: number; readonly text: string }[] {
  const parts = output.stderr.split(/^Command failed -:(\d+).*\n?/m);
  return parts.flatMap((stderr, index) =>
    index % 2 === 0 && index + 1 < parts.length
      ? [{ line: Number(parts[index + 1]), text: failureText({ ...output, stderr }) }]
      : []
  );
}

/**
 * A tool's complaint in the words that the reference would use: iproute2's "RTNETLINK answers: File exists" becomes
 * "file exists", absent links "Link not found", and so do the kernel's own explanations; other tools' first telling
 * line is kept.
 */
export function failureText(output: Output): string {
  const lines = output.stderr.split("\n").map((line) => line.trim()).filter((line) =>
    line !== "" && !line.startsWith("Command failed") && !line.startsWith("# Warning")
  );
  for (const line of lines) {
    const answer = /^RTNETLINK answers: (.*)$/.exec(line)?.[1];
    if (answer) return answer.charAt(0).toLowerCase() + answer.slice(1);
    if (/^Cannot find device|Device ".*" does not exist/.test(line)) return "Link not found";
    const errno = EXTENDED.find(([pattern]) => pattern.test(line))?.[1];
    if (errno) return errno;
    const [, file, words] = /^tee: (\/proc\/sys\/.*): ([A-Z].*)$/.exec(line) ?? [];
    if (file && words) {
      const verb = /^(No such|Is a|Not a|Permission|Read-only)/.test(words) ? "open" : "write";
      return `${verb} ${file}: ${words.charAt(0).toLowerCase()}${words.slice(1)}`;
    }
  }
  const error = lines.find((line) => line.startsWith("Error: ")) ?? lines.find((line) => /error/i.test(line)) ??
    lines[0];
  if (error) return error.replace(/^Error: /, "");
  return output.signal ? `signal: ${output.signal}` : `exit status ${output.code}`;
}

/**
 * What newer kernels say instead of an errno, and the errno's words, which the reference prints and people search for.
 */
const EXTENDED: readonly (readonly [RegExp, string])[] = [
  [/^Error: Exclusivity flag on/, "file exists"],
  [/^Error: Unable to use '.*' for the new interface name/, "file exists"],
  [/^Error: (8021q: )?VLAN device already exists|^Error: ipv[46]: address already assigned/i, "file exists"],
  [/^Error: Unknown device type/, "operation not supported"],
  [/^Error: Specified qdisc kind is unknown/, "no such file or directory"],
  [/^Error: Address already assigned to an ipvlan/, "address already in use"],
  [/^Error: mtu (less|greater) than device|^Error: Invalid prefix for given prefix length/, "invalid argument"],
  [/^Error: The interface netns is immutable/, "invalid argument"],
  [/^Error: Nexthop has invalid gateway/, "network is unreachable"],
  [/^Error: (ipv6: )?IPv6 is disabled on this device/, "permission denied"],
];

/** nft's complaint in one line: it points at places below each message, which makes no sense in an error object. */
export function nftText(output: Output): string {
  const messages = output.stderr.split("\n").filter((line) => /Error: /.test(line)).map((line) =>
    line.replace(/^\/dev\/stdin:(\d+):\S+ /, "line $1: ")
  );
  return messages.length > 0 ? messages.join("; ") : failureText(output);
}

/** The error's own text: busctl and dbus-send put theirs in front. */
export function busText({ stderr, code }: Output): string {
  const line = stderr.split("\n").find((text) => text.trim() !== "")?.trim() ?? `exit status ${code}`;
  return line.replace(/^Call failed: /, "").replace(/^Error [\w.]+: /, "");
}
