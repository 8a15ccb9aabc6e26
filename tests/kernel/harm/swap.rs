//! Swap files and swap areas of others are left alone, and our own go where the configuration says.
