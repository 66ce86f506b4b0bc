/**
 * Addresses and prefixes as values of keys: the readers that IPAM plugins share, with the reference's words for what is
 * wrong.
 */
import { FieldError } from "../cni/decode.ts";
import { type Address, hostPrefix, networkPrefix, parseAddress, parsePrefix, type Prefix } from "../net/cidr.ts";

/** A prefix in CIDR form, as it is written. Throws {@linkcode FieldError}. */
export function cidr(value: string | undefined, path: string): string | undefined {
  if (value === undefined || parsePrefix(value) !== undefined) return value;
  throw new FieldError(
    path,
    `invalid CIDR address: ${value}`,
    `"${path}" is an address and a prefix length: 10.1.2.0/24`,
  );
}

/** A plain address, as it is written; "" is as good as absent. Throws {@linkcode FieldError}. */
export function plain(value: string | undefined, path: string): string | undefined {
  if (value === undefined || value === "") return undefined;
  if (parseAddress(value) !== undefined) return value;
  throw new FieldError(path, `invalid IP address: ${value}`, `"${path}" is an address without a prefix length`);
}

/** An address with or without a prefix length, which does not count; undefined when it is neither. */
export function ipOrCidr(value: string): Address | undefined {
  return value.includes("/") ? parsePrefix(value)?.address : parseAddress(value);
}

/** An address or a prefix, as the prefix that it stands for. Throws {@linkcode FieldError}. */
export function prefixOrAddress(value: string, path: string): Prefix {
  const single = parseAddress(value);
  const found = single ? hostPrefix(single) : parsePrefix(value);
  if (found) return networkPrefix(found);
  throw new FieldError(
    path,
    `invalid CIDR address: ${value}`,
    `"${path}" is an address or a prefix: 10.1.2.3, 10.1.2.0/28`,
  );
}
