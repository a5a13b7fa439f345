// Avro's own schema resolution, for tests/formats/resolution.rs: reads pairs of schemas, makes random datums of the one, and
// says what each is in the other.
//
// in, a line each:   writer's schema TAB reader's schema
// out, a line each:  compatible by SchemaCompatibility (true, false); then for each datum  SPACE written:read  in hexadecimal,
//                    `!` for what was refused

import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.util.HexFormat;
import org.apache.avro.NameValidator;
import org.apache.avro.Schema;
import org.apache.avro.SchemaCompatibility;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericDatumReader;
import org.apache.avro.generic.GenericDatumWriter;
import org.apache.avro.io.BinaryDecoder;
import org.apache.avro.io.BinaryEncoder;
import org.apache.avro.io.DecoderFactory;
import org.apache.avro.io.EncoderFactory;
import org.apache.avro.util.RandomData;

public class Resolve {
  static final int DATUMS = 12;

  /** Avro 1.12 reads an array of doubles by way of a float where the writer's were ints; a list of any objects it does not. */
  static class Reader extends GenericDatumReader<Object> {
    Reader(Schema writer, Schema reader) {
      super(writer, reader, new GenericData());
    }

    @Override
    protected Object newArray(Object old, int size, Schema schema) {
      return new GenericData.Array<>(size, schema);
    }
  }

  static byte[] encode(Schema schema, Object datum) throws Exception {
    ByteArrayOutputStream out = new ByteArrayOutputStream();
    BinaryEncoder encoder = EncoderFactory.get().binaryEncoder(out, null);
    new GenericDatumWriter<>(schema, new GenericData()).write(datum, encoder);
    encoder.flush();
    return out.toByteArray();
  }

  public static void main(String[] args) throws Exception {
    BufferedReader in = new BufferedReader(new InputStreamReader(System.in, "UTF-8"));
    HexFormat hex = HexFormat.of();
    for (String line = in.readLine(); line != null; line = in.readLine()) {
      String[] pair = line.split("\t");
      // As it was registered: Avro up to 1.11 looked at no namespace, and Confluent's registry at the defaults of new schemas.
      Schema writer = new Schema.Parser(NameValidator.NO_VALIDATION).setValidateDefaults(false).parse(pair[0]);
      Schema reader = new Schema.Parser().parse(pair[1]);
      StringBuilder out = new StringBuilder();
      out.append(SchemaCompatibility.checkReaderWriterCompatibility(reader, writer).getType()
          == SchemaCompatibility.SchemaCompatibilityType.COMPATIBLE);
      for (Object datum : new RandomData(writer, DATUMS, 7L)) {
        byte[] written = encode(writer, datum);
        String read;
        try {
          BinaryDecoder decoder = DecoderFactory.get().binaryDecoder(written, null);
          Object resolved = new Reader(writer, reader).read(null, decoder);
          read = hex.formatHex(encode(reader, resolved));
        } catch (Exception | StackOverflowError refused) {
          read = "!";
        }
        out.append(' ').append(hex.formatHex(written)).append(':').append(read);
      }
      System.out.println(out);
    }
  }
}
