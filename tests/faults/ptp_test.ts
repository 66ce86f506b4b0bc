/** Calls of ptp+bandwidth+firewall that are let down, at some points. */
import { tryShortly } from "./short_form.ts";

tryShortly("ptp+bandwidth+firewall");
