"""Programs on the public interface of the library; tests run them."""
