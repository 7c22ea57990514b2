"""The same picture twice: hashes of pictures, an index of hashes, copies, and benchmark images in a corpus."""
