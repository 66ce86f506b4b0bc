/** Calls of bridge+portmap iptables that are let down, at some points. */
import { tryShortly } from "./short_form.ts";

tryShortly("bridge+portmap iptables");
