/**
 * The node's list of settings that a configuration may write: `/etc/cni/tuning/allowlist.conf`, one regular expression
 * a line. The expressions are those of the reference (RE2), unanchored; what means something else here is refused.
 */
import { internal } from "../../lib/cni/error.ts";
import { readFileIfThere } from "../../lib/kernel/state_file.ts";

/** Where the reference and we look for the list. */
export const ALLOW_LIST = "/etc/cni/tuning/allowlist.conf";

/** The list's lines; undefined when there is no list, and then every setting is allowed. */
export function readAllowList(path: string = ALLOW_LIST): readonly string[] | undefined {
  let text: string | undefined;
  try {
    text = readFileIfThere(path, { links: true });
  } catch (error) {
    const reason = error instanceof Deno.errors.PermissionDenied ? "permission denied" : (error as Error).message;
    throw internal(`open ${path}: ${reason}`, "the list of allowed settings cannot be read");
  }
  return text?.split("\n").map((line) => line.trim()).filter((line) => line !== "");
}

/** Refuses the first of these settings, spelled as in the configuration, that no line of the list matches. */
export function checkAllowed(settings: readonly string[], list: readonly string[] | undefined): void {
  if (list === undefined) return;
  const compiled: RegExp[] = [];
  for (const setting of settings) {
    const allowed = list.some((line, index) => (compiled[index] ??= fromRe2(line)).test(setting));
    if (allowed) continue;
    throw internal(
      `Sysctl ${setting} is not allowed. Only the following sysctls are allowed: [${list.join(" ")}]`,
      `the list is ${ALLOW_LIST} on this node`,
    );
  }
}

/** Words of RE2 for what V8 says about an expression. */
const COMPLAINTS: readonly (readonly [RegExp, string])[] = [
  [/Unterminated group/, "missing closing )"],
  [/Unmatched '\)'/, "unexpected )"],
  [/Unterminated character class/, "missing closing ]"],
  [/Nothing to repeat/, "missing argument to repetition operator"],
  [/\\ at end of pattern/, "trailing backslash at end of expression"],
  [/Range out of order/, "invalid character class range"],
];

/** Names between `[:` and `:]`, as the inside of a class. */
const POSIX: Readonly<Record<string, string>> = {
  alnum: "0-9A-Za-z",
  alpha: "A-Za-z",
  ascii: "\\x00-\\x7F",
  blank: "\\t ",
  cntrl: "\\x00-\\x1F\\x7F",
  digit: "0-9",
  graph: "!-~",
  lower: "a-z",
  print: " -~",
  punct: "!-\\/:-@\\[-`{-~",
  space: "\\t\\n\\v\\f\\r ",
  upper: "A-Z",
  word: "0-9A-Za-z_",
  xdigit: "0-9A-Fa-f",
};

/**
 * An RE2 expression as one of ours with the same meaning. Throws for what is none, and for the few things that RE2 has
 * and we do not (flags in the middle, Unicode classes): a list must never allow more than its author meant.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * assertEquals(fromRe2("^net\\.ipv4\\.conf\\.[[:alnum:]]+\\.x\\z").test("net.ipv4.conf.eth0.x"), true);
 * ```
 */
export function fromRe2(expression: string): RegExp {
  const bad = (what: string) =>
    internal(
      `error parsing regexp: ${what}: \`${expression}\``,
      `a line of ${ALLOW_LIST} is not a regular expression that can be used here`,
    );
  const [, letters = "", rest = ""] = /^(?:\(\?([a-zA-Z]+)\))?([\s\S]*)$/.exec(expression) ?? [];
  if (/[^ims]/.test(letters)) throw bad("invalid or unsupported Perl syntax");
  let source = "";
  let inClass = false;
  for (let at = 0; at < rest.length;) {
    const left = rest.slice(at);
    const quoted = /^\\Q([\s\S]*?)(?:\\E|$)/.exec(left);
    const posix = inClass ? /^\[:(\^?)([a-z]+):\]/.exec(left) : null;
    let token = left.charAt(0);
    let written = token;
    if (quoted) {
      token = quoted[0];
      written = (quoted[1] ?? "").replace(/[^0-9A-Za-z_\s]/g, "\\$&");
    } else if (posix) {
      token = posix[0];
      const inside = POSIX[posix[2] ?? ""];
      if (inside === undefined || posix[1] !== "") throw bad("invalid character class range");
      written = inside;
    } else if (token === "\\") {
      token = left.slice(0, 2);
      written = escape(token, inClass) ?? "";
      if (written === "") {
        throw bad(token.length < 2 ? "trailing backslash at end of expression" : "invalid escape sequence");
      }
    } else if (inClass) {
      if (token === "]") inClass = false;
      // RE2 takes a bracket in a class for itself, as we do.
    } else if (token === "[") {
      // A bracket that closes right after the opening one is a member of the class in RE2.
      token = /^\[\^?\]?/.exec(left)?.[0] ?? token;
      written = token.endsWith("]") ? `${token.slice(0, -1)}\\]` : token;
      inClass = true;
    } else if (left.startsWith("(?")) {
      token = /^\(\?(?::|P<\w+>|<\w+>)/.exec(left)?.[0] ?? "";
      if (token === "") throw bad("invalid or unsupported Perl syntax");
      written = token.replace("?P<", "?<");
    }
    source += written;
    at += token.length;
  }
  try {
    return new RegExp(source, letters);
  } catch (error) {
    const words = (error as Error).message;
    throw bad(COMPLAINTS.find(([pattern]) => pattern.test(words))?.[1] ?? words);
  }
}

/** An escape of RE2 as one of ours; undefined when there is none. */
function escape(token: string, inClass: boolean): string | undefined {
  const letter = token.charAt(1);
  if (letter !== "" && /[^0-9A-Za-z]/.test(letter)) return token;
  if (/[dDwWtnrfv]/.test(letter)) return token;
  if (letter === "s") return inClass ? "\\t\\n\\f\\r " : "[\\t\\n\\f\\r ]";
  if (inClass) return undefined;
  if (/[bB]/.test(letter)) return token;
  if (letter === "S") return "[^\\t\\n\\f\\r ]";
  if (letter === "A") return "(?<![\\s\\S])";
  if (letter === "z") return "(?![\\s\\S])";
  return undefined;
}
