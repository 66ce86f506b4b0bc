/** Names of network links, as the kernel and iproute2 take them. */

/**
 * Can a link have this name, and can it be written into a batch line as it is? The kernel's rule (1 to 15 bytes, not
 * `.` or `..`, no slash, colon or blank), and nothing that iproute2 reads as an option, a quote or a pattern, or that a shell
 * would expand: what is explained is copied into one.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * assertEquals(isLinkName("cni0.100"), true);
 * assertEquals(isLinkName("-batch"), false);
 * ```
 */
export function isLinkName(name: string): boolean {
  // Control characters by number: the engine takes a third of a millisecond to look \p{Cc} up.
  // deno-lint-ignore no-control-regex
  return /^(?!-)[^\s/:"'`$\\%\0-\x1f\x7f-\x9f]+$/.test(name) && name !== "." && name !== ".." &&
    new TextEncoder().encode(name).length <= 15;
}

/**
 * Can this be written into a batch line as the name of a link, or as an alternative name, which may be longer and hold a colon?
 * Nothing is said of its length.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * assertEquals(isNameInBatch("an:alternative-name-of-a-link"), true);
 * assertEquals(isNameInBatch("a b"), false);
 * ```
 */
export function isNameInBatch(name: string): boolean {
  return /^(?!-)[^\s/"'`$\\%#\p{Cc}]+$/u.test(name);
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
  return /^if\d+$/.test(name);
}
