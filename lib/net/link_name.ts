/** Names of network links, as the kernel and iproute2 take them. */

/**
 * Can a link have this name, and can it be written into a batch line as it is? The kernel's rule (1 to 15 bytes, not `.` or `..`,
 * no slash, colon or blank), and nothing that iproute2 reads as an option, a quote or a pattern.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * assertEquals(isLinkName("cni0.100"), true);
 * assertEquals(isLinkName("-batch"), false);
 * ```
 */
export function isLinkName(name: string): boolean {
  return /^(?!-)[^\s/:"'\\%\p{Cc}]+$/u.test(name) && name !== "." && name !== ".." &&
    new TextEncoder().encode(name).length <= 15;
}
