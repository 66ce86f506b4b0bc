/** The result that a chain hands from one plugin to the next. */
import { isObject, kindOf, lookup } from "./decode.ts";
import { internal } from "./error.ts";
import type { Call } from "./plugin.ts";
import type { Result } from "./types.ts";
import { parsePrevResult } from "./version.ts";

/**
 * `prevResult` in the newest layout, or undefined when there is none. `doing` is the plugin's words for a bad config.
 */
export function prevResult(call: Call, doing = "failed to load netconf"): Result | undefined {
  const source = lookup(call.config, "prevResult");
  if (source === undefined || source === null) return undefined;
  if (!isObject(source)) {
    const text = `json: cannot unmarshal ${
      kindOf(source)
    } into Go struct field NetConf.prevResult of type map[string]interface {}`;
    throw internal(`${doing}: ${text}`, '"prevResult" has to be the object that the previous plugin printed');
  }
  return parsePrevResult(source, call.version);
}

/** The same for DEL, which must not fail on a result that it cannot read: that counts as none, with a note. */
export function prevResultLeniently(call: Call): Result | undefined {
  try {
    return prevResult(call);
  } catch (error) {
    call.warn(`ignoring prevResult: ${(error as Error).message}`);
    return undefined;
  }
}
