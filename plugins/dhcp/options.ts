/**
 * What a configuration says about DHCP options: which to send, which to ask for, and who the client is.
 *
 * @module
 */
import { type Fields, flag, integer, list, object, text } from "../../lib/cni/decode.ts";
import { badConfig, goQuote } from "../../lib/cni/error.ts";
import type { Attachment } from "../../lib/net/name.ts";

/** The keys of a configuration that the plugin and its daemon read. */
export const dhcpKeys = {
  ipam: object({
    type: text("", "`dhcp`"),
    daemonSocketPath: text("", "where the daemon listens; `/run/cni/dhcp.sock` when absent"),
    priority: integer(0, "metric of every route in the result; 0 is the kernel's default"),
    provide: list(
      object({
        option: text("", "name or number of the option"),
        value: text("", "its content, byte by byte", { bytes: true }),
        fromArg: text("", "key in CNI_ARGS whose value replaces `value`"),
      }, "one option"),
      "options to send to the server",
    ),
    request: list(
      object({
        option: text("", "name or number of the option"),
        skipDefault: flag(false, "do not ask for the router and the subnet mask besides"),
      }, "one option"),
      "options to ask the server for",
    ),
  }, "where the lease comes from"),
};

/** `ipam` of a configuration, decoded. */
export type DhcpConf = NonNullable<Fields<typeof dhcpKeys>["ipam"]>;

/** Names that configurations may use instead of numbers; any other option goes by its number (RFC 2132). */
export const OPTION_NAMES: Readonly<Record<string, number>> = {
  "dhcp-client-identifier": 61,
  "subnet-mask": 1,
  "routers": 3,
  "host-name": 12,
  "user-class": 77,
  "vendor-class-identifier": 60,
};

/** Options that are the protocol's own machinery (RFC 2132 section 9): the client alone decides about them. */
const MACHINERY: Readonly<Record<number, string>> = {
  50: "the address asked for",
  52: "where options are",
  53: "the message type",
  54: "the server",
  55: "the list of options asked for: use `request`",
  57: "the largest message",
};

/** What a DHCP client is told to say. */
export interface ClientOptions {
  /** Options to send, by number, each with its content. Never holds 0, 255 and those of the client itself. */
  readonly send: ReadonlyMap<number, Uint8Array>;
  /** Numbers to ask for, in order, without repeats. */
  readonly ask: readonly number[];
}

/** Router, subnet mask: asked for unless a configuration says `skipDefault`. */
const DEFAULT_ASKED = [3, 1];
/** With `skipDefault` and nothing listed, the reference's client library asks for these. */
const LIBRARY_ASKED = [1, 3, 15, 6];

/**
 * Options of one attachment. `args` is CNI_ARGS, from which `fromArg` picks.
 *
 * @throws {CniError} code 7 in the reference's words: unknown names, values of more than 255 bytes
 */
export function clientOptions(conf: DhcpConf, args: string): ClientOptions {
  const values = argValues(args);
  const send = new Map<number, Uint8Array>();
  const encoder = new TextEncoder();
  for (const entry of conf.provide ?? []) {
    if (!entry) continue;
    const { option, value, fromArg } = entry;
    const number = optionNumber(option);
    const bytes = encoder.encode(value);
    if (bytes.length > 255) {
      throw badConfig(`value too long for option ${goQuote(option)}: ${goQuote(value)}`, tooLong(bytes));
    }
    if (bytes.length > 0) send.set(number, bytes);
    const given = fromArg === "" ? undefined : values.get(fromArg);
    if (given === undefined) continue;
    const replacement = encoder.encode(given);
    if (replacement.length > 255) {
      throw badConfig(
        `value too long for option ${goQuote(option)} from CNI_ARGS ${goQuote(fromArg)}: ${goQuote(value)}`,
        tooLong(replacement),
      );
    }
    send.set(number, replacement);
  }
  send.delete(0);
  send.delete(255);
  for (const number of send.keys()) {
    const role = MACHINERY[number];
    if (role !== undefined) {
      throw badConfig(`option ${goQuote(String(number))} cannot be provided`, `it is ${role}`);
    }
  }
  const listed: number[] = [];
  let skip = false;
  for (const entry of conf.request ?? []) {
    if (!entry) continue;
    skip ||= entry.skipDefault;
    if (entry.option !== "") listed.push(optionNumber(entry.option));
  }
  const asked = skip ? (listed.length > 0 ? listed : LIBRARY_ASKED) : [...listed, ...DEFAULT_ASKED];
  return { send, ask: [...new Set(asked)].filter((number) => number !== 0 && number !== 255) };
}

function tooLong(bytes: Uint8Array): string {
  return `it has ${bytes.length} bytes; an option holds 255`;
}

/** Number of an option as configured. */
function optionNumber(option: string): number {
  const named = Object.hasOwn(OPTION_NAMES, option) ? OPTION_NAMES[option] : undefined;
  if (named !== undefined) return named;
  const number = Number(option);
  if (/^[0-9]+$/.test(option) && number <= 255) return number;
  const reason = /^[0-9]+$/.test(option) ? "value out of range" : "invalid syntax";
  throw badConfig(
    `Can not parse option ${goQuote(option)}: Can not parse option: strconv.ParseUint: parsing ${
      goQuote(option)
    }: ${reason}`,
    `write a number from 1 to 254, or one of ${Object.keys(OPTION_NAMES).join(", ")}`,
  );
}

/** CNI_ARGS as this plugin reads it: nothing in there can be wrong. */
function argValues(args: string): Map<string, string> {
  const values = new Map<string, string>();
  for (const pair of args.split(";")) {
    const at = pair.indexOf("=");
    if (at >= 0) values.set(pair.slice(0, at), pair.slice(at + 1));
  }
  return values;
}

/** Who asks: container, network and interface. */
export type Owner = Attachment;

/** Longest client identifier without its type byte. */
const MAX_ID = 254;

/**
 * The bytes that name a client to servers: the same for the same attachment on every node and in the reference, so that
 * a server gives the same address again.
 */
export function clientId({ containerId, network, ifName }: Owner): Uint8Array {
  return new TextEncoder().encode(`${containerId}/${network}/${ifName}`).subarray(0, MAX_ID);
}

/** Option 61 as sent: what the configuration provides, or a type byte of 0 and the identifier. */
export function identifierOption(owner: Owner, options: ClientOptions): Uint8Array {
  return options.send.get(61) ?? Uint8Array.from([0, ...clientId(owner)]);
}
