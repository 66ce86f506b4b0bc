/** Calls of bridge+portmap nftables that are let down, at some points. */
import { tryShortly } from "./short_form.ts";

tryShortly("bridge+portmap nftables");
