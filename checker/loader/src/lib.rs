//! User-mode loader of Cordon.
