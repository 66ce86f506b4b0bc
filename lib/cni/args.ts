/** CNI_ARGS: `K=V;K2=V2`, the protocol's old way of handing extra values to a plugin. */
import { goQuote, internal } from "./error.ts";

/**
 * Reads CNI_ARGS strictly, as the reference does: keys are case-sensitive, unknown keys are an error unless
 * `IgnoreUnknown` is true. Returns the values of the `known` keys that are there; the last of several counts.
 */
export function parseArgs<K extends string>(args: string, known: readonly K[]): Partial<Record<K, string>> {
  const values: Partial<Record<K, string>> = {};
  if (args === "") return values;
  const unknown: string[] = [];
  let ignore = false;
  for (const pair of args.split(";")) {
    const parts = pair.split("=");
    const [key = "", value = ""] = parts;
    if (parts.length !== 2) {
      throw internal(
        `ARGS: invalid pair ${goQuote(pair)}`,
        'CNI_ARGS is a list of KEY=VALUE pairs separated by ";", without one at the end',
      );
    }
    if (key === "IgnoreUnknown") {
      const word = value.toLowerCase();
      if (!["1", "true", "0", "false"].includes(word)) {
        throw internal(
          `ARGS: error parsing value of pair ${goQuote(pair)}: boolean unmarshal error: invalid input ${word}`,
        );
      }
      ignore = word === "1" || word === "true";
    } else if ((known as readonly string[]).includes(key)) values[key as K] = value;
    else unknown.push(goQuote(pair));
  }
  if (unknown.length > 0 && !ignore) {
    throw internal(
      `ARGS: unknown args [${unknown.join(" ")}]`,
      `this plugin knows ${known.join(", ") || "no keys"}; add IgnoreUnknown=1 to CNI_ARGS to pass others on`,
    );
  }
  return values;
}
