"""What int8 linears are made of: rounded rows, int8 products, rows shared by linears that read the same input."""
