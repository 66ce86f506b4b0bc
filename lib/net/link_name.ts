/** Names of network links, as the kernel and iproute2 take them. */

/**
 * Can a link be made with this name? The kernel's rule (1 to 15 bytes, not `.` or `..`, no slash, colon, blank or `%`,
 * which it takes for a pattern), and no control character, since iproute2 cannot say such a name in JSON. What a tool
 * would read as syntax is none of this function's business: that is quoted where the tool is told.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * assertEquals(isLinkName("cni0.100"), true);
 * assertEquals(isLinkName("eth0#x"), true);
 * assertEquals(isLinkName("eth%d"), false);
 * ```
 */
export function isLinkName(name: string): boolean {
  // Control characters by number: the engine takes a third of a millisecond to look \p{Cc} up.
  // deno-lint-ignore no-control-regex
  if (!/^[^ \/:%\0-\x1f\x7f-\x9f]+$/.test(name) || name === "." || name === "..") return false;
  const bytes = new TextEncoder().encode(name);
  // The kernel looks at bytes, and takes this one for a blank.
  return bytes.length <= 15 && !bytes.includes(0xa0);
}

/**
 * Can a link be known by this name, its own or an alternative one, which has up to 127 bytes and may hold a colon?
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * assertEquals(isAnyName("an:alternative-name-of-a-link"), true);
 * assertEquals(isAnyName("a b"), false);
 * ```
 */
export function isAnyName(name: string): boolean {
  // deno-lint-ignore no-control-regex
  return /^[^ /\0-\x1f\x7f-\x9f]+$/.test(name) && new TextEncoder().encode(name).length <= 127;
}

/**
 * Does iproute2 take this name for a link's index when there is no link of that name? `ip link del dev if7` deletes the
 * link with the index 7 then, whatever it is called.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * assertEquals(isIndexName("if7"), true);
 * assertEquals(isIndexName("eth7"), false);
 * ```
 */
export function isIndexName(name: string): boolean {
  // It reads a number and ignores what follows.
  return /^if[+-]?\d/.test(name);
}
